//! Devices that pods do better with.

use std::fs::File;
use std::io;

use super::Finding;

pub(super) fn vhost_net() -> Finding {
    judge_vhost_net(open("/dev/vhost-net"))
}

pub(super) fn tun() -> Finding {
    judge_tun(open("/dev/net/tun"))
}

fn open(path: &str) -> io::Result<()> {
    File::options().read(true).write(true).open(path).map(drop)
}

fn judge_vhost_net(result: io::Result<()>) -> Finding {
    match result {
        Ok(()) => Finding::ok("vhost-net", "/dev/vhost-net"),
        Err(error) => Finding::warn(
            "vhost-net",
            format!("/dev/vhost-net: {error}"),
            format!(
                "pods move their packets in the monitor, which is slower; {}",
                remedy(&error, "vhost_net")
            ),
        ),
    }
}

fn judge_tun(result: io::Result<()>) -> Finding {
    match result {
        Ok(()) => Finding::ok("tun", "/dev/net/tun"),
        Err(error) => Finding::warn(
            "tun",
            format!("/dev/net/tun: {error}"),
            format!(
                "pods get no network (--net) without it; {}",
                remedy(&error, "tun")
            ),
        ),
    }
}

fn remedy(error: &io::Error, module: &str) -> String {
    match error.kind() {
        io::ErrorKind::PermissionDenied => "run this as root".into(),
        _ => format!("modprobe {module}"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    #[test]
    fn without_them_pods_still_run() {
        for judge in [judge_vhost_net, judge_tun] {
            let missing = judge(Err(io::Error::from(io::ErrorKind::NotFound)));
            assert_eq!(missing.verdict, Verdict::Warn);
            assert!(missing.advice.contains("modprobe"), "{missing}");
            let forbidden = judge(Err(io::Error::from(io::ErrorKind::PermissionDenied)));
            assert!(forbidden.advice.ends_with("root"), "{forbidden}");
            assert_eq!(judge(Ok(())).verdict, Verdict::Ok);
        }
    }
}
