//! The version of the OCI runtime specification that a bundle is written for.

use serde_json::Value;

use super::Refusal;

/// What this code was written against: 1.0 up to this minor version. A later
/// one may mean something by a field that is not looked at here.
const MAJOR: u64 = 1;
const NEWEST_MINOR: u64 = 3;

/// Refuses a version that is missing, unreadable or not known yet.
pub(super) fn check(spec: &Value) -> Result<(), Refusal> {
    let refuse = |reason: String| Refusal::new("ociVersion", reason);
    let text = spec
        .get("ociVersion")
        .and_then(Value::as_str)
        .ok_or_else(|| refuse("missing: the bundle must say which version it follows".into()))?;
    let (major, minor) =
        parse(text).ok_or_else(|| refuse(format!("{text:?} is not of the form 1.2.3")))?;
    if major != MAJOR || minor > NEWEST_MINOR {
        return Err(refuse(format!(
            "{text} is not supported (1.0.0 to {MAJOR}.{NEWEST_MINOR}.x are)"
        )));
    }
    Ok(())
}

/// Major and minor of a semantic version; `-rc.1`, `-dev` and `+dev` may follow.
fn parse(text: &str) -> Option<(u64, u64)> {
    let core = text.split(['-', '+']).next()?;
    let numbers = core
        .split('.')
        .map(|number| number.parse().ok())
        .collect::<Option<Vec<u64>>>()?;
    match numbers[..] {
        [major, minor, _patch] => Some((major, minor)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_engines_write_is_taken() {
        for version in [
            "1.0.0",
            "1.0.2-dev",
            "1.1.0+dev",
            "1.2.1",
            "1.3.0",
            "1.0.0-rc5",
        ] {
            assert_eq!(
                check(&json!({ "ociVersion": version })),
                Ok(()),
                "{version}"
            );
        }
    }

    #[test]
    fn the_future_and_the_unreadable_are_refused_by_name() {
        for version in [
            "1.4.0",
            "2.0.0",
            "0.9.0",
            "1.0",
            "one",
            "",
            "1.99.0-dev",
            "1.0.0.0",
        ] {
            let refusal = check(&json!({ "ociVersion": version })).unwrap_err();
            assert_eq!(refusal.field, "ociVersion", "{version}");
        }
        for spec in [json!({}), json!({ "ociVersion": 1 }), json!([])] {
            assert_eq!(check(&spec).unwrap_err().field, "ociVersion");
        }
    }
}
