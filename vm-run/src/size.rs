//! Sizes of memory as people write them.

use std::str::FromStr;

use nacre_pod::boot::{MAX_MEMORY_MIB, MIN_MEMORY_MIB};

/// A size in MiB that a guest's memory can have.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Mebibytes(pub(crate) u64);

impl FromStr for Mebibytes {
    type Err = String;

    /// A number alone is MiB; `K`, `M`, `G` and `T`, also with `i` and `B`, are
    /// powers of 1024. Parts of a MiB are rounded up.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let (number, unit) = text.split_at(digits);
        let number: u64 = number
            .parse()
            .map_err(|_| "not a size: give MiB, or a unit as in 512M or 1G".to_owned())?;
        let kibibytes = match unit.to_ascii_lowercase().as_str() {
            "k" | "kb" | "kib" => 1,
            "" | "m" | "mb" | "mib" => 1 << 10,
            "g" | "gb" | "gib" => 1 << 20,
            "t" | "tb" | "tib" => 1 << 30,
            _ => return Err(format!("{unit:?} is not one of the units K, M, G and T")),
        };
        let mebibytes = number.saturating_mul(kibibytes).div_ceil(1 << 10);
        if !(MIN_MEMORY_MIB..=MAX_MEMORY_MIB).contains(&mebibytes) {
            return Err(format!(
                "must be {MIN_MEMORY_MIB} MiB (a kernel needs that) to {MAX_MEMORY_MIB} MiB"
            ));
        }
        Ok(Self(mebibytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_people_write_them() {
        for (text, mebibytes) in [
            ("256", 256),
            ("512M", 512),
            ("512m", 512),
            ("512MiB", 512),
            ("1G", 1024),
            ("2gb", 2048),
            ("1T", 1 << 20),
            ("65537K", 65),
        ] {
            assert_eq!(text.parse(), Ok(Mebibytes(mebibytes)), "{text}");
        }
    }

    #[test]
    fn what_is_no_size_or_out_of_bounds_is_refused() {
        for text in [
            "",
            "M",
            "-1",
            "1.5G",
            "512 M",
            "1P",
            "0",
            "31",
            "2T",
            "99999999999999999999",
            "18446744073709551615T",
        ] {
            assert!(text.parse::<Mebibytes>().is_err(), "{text}");
        }
    }
}
