//! `linux.resources.hugepageLimits` in cgroup version 2.

use oci_spec::runtime::LinuxHugepageLimit;

use super::plan::{Current, Write, invalid, limit};
use crate::error::Error;

const FIELD: &str = "linux.resources.hugepageLimits";

/// Sizes of pages that one update may name; no processor has as many.
const MAX_SIZES: usize = 64;

/// Adds the writes for `limits`: of what is used, and of what is reserved, where the kernel
/// counts it.
pub(super) fn plan(
    limits: &[LinuxHugepageLimit],
    current: Current<'_>,
    writes: &mut Vec<Write>,
) -> Result<(), Error> {
    if limits.len() > MAX_SIZES {
        return Err(invalid(FIELD, "names too many sizes"));
    }
    let is_there = |file: &str| current(file).is_some_and(|content| !content.is_empty());
    for (index, wanted) in limits.iter().enumerate() {
        let size = wanted.page_size();
        if !is_size(size) {
            let field = format!("{FIELD}[{index}].pageSize");
            return Err(invalid(&field, "must be a size such as 2MB"));
        }
        let field = format!("{FIELD}[{index}].limit");
        let value = limit(&field, wanted.limit())?;
        let used = format!("hugetlb.{size}.max");
        // Of pages of a size that the guest has not, there are none to use.
        if !is_there(&used) && value == "0" {
            continue;
        }
        writes.push(Write::new(&field, &used, value.clone()));
        let reserved = format!("hugetlb.{size}.rsvd.max");
        if is_there(&reserved) {
            writes.push(Write::new(&field, &reserved, value));
        }
    }
    Ok(())
}

/// As the kernel writes it in the names of its files.
fn is_size(text: &str) -> bool {
    let number = ["KB", "MB", "GB"]
        .iter()
        .find_map(|unit| text.strip_suffix(unit));
    number.is_some_and(|number| {
        !number.is_empty() && number.bytes().all(|digit| digit.is_ascii_digit())
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn planned(limits: Value, files: &[&str]) -> Result<Vec<String>, String> {
        let limits: Vec<LinuxHugepageLimit> = serde_json::from_value(limits).unwrap();
        let current = |file: &str| files.contains(&file).then(|| "max\n".to_owned());
        let mut writes = Vec::new();
        plan(&limits, &current, &mut writes).map_err(|error| error.to_string())?;
        let write = |write: Write| format!("{}={}", write.file, write.value);
        Ok(writes.into_iter().map(write).collect())
    }

    #[test]
    fn a_limit_goes_to_the_files_of_its_size() {
        let files = ["hugetlb.2MB.max", "hugetlb.2MB.rsvd.max"];
        let limits = json!([{ "pageSize": "2MB", "limit": 4_194_304 }]);
        assert_eq!(
            planned(limits, &files).unwrap(),
            ["hugetlb.2MB.max=4194304", "hugetlb.2MB.rsvd.max=4194304"]
        );
        let limits = json!([{ "pageSize": "2MB", "limit": 0 }]);
        assert_eq!(planned(limits, &files[..1]).unwrap(), ["hugetlb.2MB.max=0"]);
    }

    #[test]
    fn of_a_size_that_is_not_there_none_can_be_used() {
        let none = json!([{ "pageSize": "1GB", "limit": 0 }]);
        assert_eq!(planned(none, &[]).unwrap(), [""; 0]);
        // The kernel's answer to the write names the file.
        let some = json!([{ "pageSize": "1GB", "limit": 1_073_741_824 }]);
        assert_eq!(planned(some, &[]).unwrap(), ["hugetlb.1GB.max=1073741824"]);
    }

    #[test]
    fn a_size_is_no_path() {
        for size in ["", "MB", "2", "2mb", "-2MB", "../2MB", "2.MB", "2MB/x"] {
            let error = planned(json!([{ "pageSize": size, "limit": 1 }]), &[]).unwrap_err();
            let named = "linux.resources.hugepageLimits[0].pageSize: ";
            assert!(error.starts_with(named), "{size}: {error}");
        }
        let error = planned(json!([{ "pageSize": "2MB", "limit": -2 }]), &[]).unwrap_err();
        assert!(error.starts_with("linux.resources.hugepageLimits[0].limit: "));
    }
}
