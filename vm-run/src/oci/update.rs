//! `update`: other limits for a running container.

use std::fs;
use std::io::{self, Read};
use std::path::Path;

use nacre_pod::spec::HostCpus;
use serde_json::{Value, json};

use super::affinity;
use super::cli::UpdateArgs;
use super::error::OciError;
use super::state::Root;
use super::verb;
use super::wire::Request;

/// Changes the limits of a container.
pub(crate) fn update(root: &Root, args: &UpdateArgs) -> Result<(), OciError> {
    let mut resources = match &args.resources {
        Some(file) => read(file)?,
        None => resources(args)?,
    };
    let cpus = take_cpus(&mut resources)?;
    let home = verb::live(root, &args.id, OciError::NotRunning)?;
    verb::ask(&home, &Request::Update { resources })?;
    let Some(cpus) = cpus else { return Ok(()) };
    let keeper = home.record()?.report("").pid;
    affinity::confine(keeper, &cpus).map_err(OciError::system(CPUS))
}

/// CPUs of the host, of which the guest knows nothing.
const CPUS: &str = "linux.resources.cpu.cpus";

fn take_cpus(resources: &mut Value) -> Result<Option<HostCpus>, OciError> {
    let cpu = resources.get_mut("cpu").and_then(Value::as_object_mut);
    let taken = cpu.and_then(|cpu| cpu.remove("cpus"));
    let taken = taken.filter(|cpus| !cpus.is_null());
    match taken.as_ref().map(Value::as_str) {
        None | Some(Some("")) => Ok(None),
        Some(text) => text.and_then(HostCpus::parse).map(Some).ok_or_else(|| {
            let reason = format!("{CPUS}: must be a list of CPUs such as 0-2,5");
            OciError::Other(reason)
        }),
    }
}

/// The specification's `linux.resources` from a file, `-` being standard input.
fn read(file: &Path) -> Result<Value, OciError> {
    let failed = || OciError::system(format!("--resources {}", file.display()));
    let text = if file == Path::new("-") {
        let mut text = Vec::new();
        io::stdin().read_to_end(&mut text).map(|_| text)
    } else {
        fs::read(file)
    };
    let value = serde_json::from_slice(&text.map_err(failed())?);
    value.map_err(|error| failed()(io::Error::from(error)))
}

fn resources(args: &UpdateArgs) -> Result<Value, OciError> {
    if args.cpuset_mems.as_deref().unwrap_or_default() != "" {
        let reason = "--cpuset-mems: names memory nodes of the host, which a guest has not";
        return Err(OciError::Other(reason.into()));
    }
    let mut resources = json!({});
    let mut set = |group: &str, field: &str, value: Option<Value>| {
        if let Some(value) = value {
            resources[group][field] = value;
        }
    };
    set("cpu", "quota", args.cpu_quota.map(Value::from));
    set("cpu", "period", args.cpu_period.map(Value::from));
    set("cpu", "shares", args.cpu_share.map(Value::from));
    set("cpu", "burst", args.cpu_burst.map(Value::from));
    set("cpu", "idle", args.cpu_idle.map(Value::from));
    set("cpu", "cpus", args.cpuset_cpus.clone().map(Value::from));
    set("blockIO", "weight", args.blkio_weight.map(Value::from));
    set("pids", "limit", args.pids_limit.map(Value::from));
    for (field, size) in [
        ("limit", &args.memory),
        ("reservation", &args.memory_reservation),
        ("swap", &args.memory_swap),
    ] {
        let size = size.as_deref().map(|text| {
            bytes(text).ok_or_else(|| OciError::Other(format!("invalid value for {field}: {text}")))
        });
        set("memory", field, size.transpose()?.map(Value::from));
    }
    if resources == json!({}) {
        return Err(OciError::Other("nothing to change".into()));
    }
    Ok(resources)
}

/// A size in bytes, with a unit that is a power of 1024; -1 is no limit.
fn bytes(text: &str) -> Option<i64> {
    if text == "-1" {
        return Some(-1);
    }
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let shift = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        _ => return None,
    };
    number.parse::<i64>().ok()?.checked_mul(1 << shift)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::{Cli, Command};
    use crate::oci::cli::Verb;

    fn of(args: &[&str]) -> Result<Value, OciError> {
        let args = ["vm-run", "update"].iter().chain(args).chain(&["id"]);
        match Cli::try_parse_from(args).unwrap().command {
            Command::Oci(Verb::Update(args)) => resources(&args),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn options_become_resources() {
        let resources = of(&[
            "--memory=64M",
            "--memory-swap=-1",
            "--cpu-quota=50000",
            "--cpu-share=512",
            "--pids-limit=7",
            "--cpu-idle=1",
            "--cpuset-cpus=0-1",
            "--cpuset-mems=",
            "--blkio-weight=500",
        ]);
        let expected = json!({
            "memory": { "limit": 64 << 20, "swap": -1 },
            "cpu": { "quota": 50000, "shares": 512, "idle": 1, "cpus": "0-1" },
            "blockIO": { "weight": 500 },
            "pids": { "limit": 7 }
        });
        assert_eq!(resources.unwrap(), expected);
    }

    #[test]
    fn cpus_of_the_host_are_no_limit_of_the_guest() {
        let mut resources = json!({ "cpu": { "cpus": "1", "shares": 5 } });
        let cpus = take_cpus(&mut resources).unwrap();
        assert_eq!(
            (cpus.unwrap().count(), &resources["cpu"]),
            (1, &json!({ "shares": 5 }))
        );
        for nothing in [
            json!({}),
            json!({ "cpu": { "cpus": "" } }),
            json!({ "cpu": null }),
        ] {
            assert_eq!(take_cpus(&mut nothing.clone()).unwrap(), None, "{nothing}");
        }
        for wrong in [
            json!({ "cpu": { "cpus": "x" } }),
            json!({ "cpu": { "cpus": 5 } }),
        ] {
            let error = take_cpus(&mut wrong.clone()).unwrap_err();
            assert!(error.to_string().starts_with(CPUS), "{error}");
        }
        let error = of(&["--cpuset-mems=0"]).unwrap_err().to_string();
        assert!(error.starts_with("--cpuset-mems: "), "{error}");
    }

    #[test]
    fn sizes_that_make_no_sense_are_refused_by_the_field() {
        for size in ["x", "1P", "99999999999G", "-2", ""] {
            let error = of(&[&format!("--memory={size}")]).unwrap_err();
            assert!(error.to_string().contains("limit"), "{error}");
        }
        of(&[]).unwrap_err();
    }
}
