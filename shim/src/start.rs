//! `start`: makes sure that a shim serves a container's pod, and says where.
//!
//! The shim is this same program, executed anew; it gets the listening socket last ([`launch`]),
//! so that whatever kills `start` before its answer leaves no shim that nobody knows.
//! containerd can connect before it is ready. Nothing but the answer may be written to stdout or
//! stderr: containerd reads both.
//!
//! [`launch`]: crate::launch

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use thiserror::Error;

use crate::annotations::{self, SpecError};
use crate::bootstrap::{Environment, Request};
use crate::bundle_files;
use crate::cli::{Cli, is_identifier};
use crate::config::ConfigError;
use crate::handover::Handover;
use crate::launch::Launcher;
use crate::options;
use crate::socket::{self, Claim};

/// Largest request of containerd's, bytes.
const MAX_REQUEST: u64 = 10 << 20;

/// Why no shim could be started.
#[derive(Debug, Error)]
pub(crate) enum StartError {
    #[error("cannot {what}: {source}")]
    System { what: String, source: io::Error },
    #[error(transparent)]
    Spec(#[from] SpecError),
    #[error("config.json: annotation {0:?} is not the identifier of a pod")]
    Pod(String),
    #[error(transparent)]
    Config(#[from] ConfigError),
}

impl StartError {
    fn system(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::System { what, source }
    }
}

/// Starts or finds the shim and prints its address.
pub(crate) fn run(cli: &Cli) -> Result<(), StartError> {
    let mut stdin = Vec::new();
    io::stdin()
        .take(MAX_REQUEST)
        .read_to_end(&mut stdin)
        .map_err(StartError::system("read standard input"))?;
    let environment = Environment {
        ttrpc_address: std::env::var("TTRPC_ADDRESS").ok(),
        max_version: std::env::var("MAX_SHIM_VERSION").ok(),
    };
    let request = Request::read(cli, environment, &stdin);
    let bundle = std::env::current_dir().map_err(StartError::system("find the bundle"))?;
    let pod = pod(cli, &bundle)?;
    let dir = request.socket_dir.as_deref();
    let address = socket::address(dir, &cli.address, &cli.namespace, &pod);
    if !socket::is_served(&socket::path(&address)) {
        return launch(cli, &request, &bundle, &address);
    }
    tell(&request, &bundle, &address)
}

/// Tells containerd where the pod's shim serves: now, and for when it is restarted itself.
fn tell(request: &Request, bundle: &Path, address: &str) -> Result<(), StartError> {
    bundle_files::write(&bundle.join(bundle_files::ADDRESS), address.as_bytes())
        .map_err(StartError::system("write the bundle's file \"address\""))?;
    let mut stdout = io::stdout();
    stdout
        .write_all(&request.form.answer(address))
        // An answer without a line's end would wait for this program's.
        .and_then(|()| stdout.flush())
        .map_err(StartError::system("answer"))
}

/// The pod that the container belongs to.
fn pod(cli: &Cli, bundle: &Path) -> Result<String, StartError> {
    let annotations = annotations::read(bundle)?;
    let pod = annotations::pod_of(&annotations, &cli.id);
    if !is_identifier(pod) {
        return Err(StartError::Pod(pod.to_owned()));
    }
    Ok(pod.to_owned())
}

/// Starts a shim that serves the pod. When that fails, nothing is left of it.
fn launch(cli: &Cli, request: &Request, bundle: &Path, address: &str) -> Result<(), StartError> {
    let handover = Handover {
        config: options::config(&request.options)?,
        address: address.to_owned(),
        ttrpc_address: request.ttrpc_address.clone(),
    };
    let (launcher, end) = Launcher::pair().map_err(StartError::system("make a socket pair"))?;
    let mut child = spawn(cli, request.debug, bundle, &handover, end)?;
    serve_from(&child, launcher, request, bundle, address).inspect_err(|_| {
        // It has done nothing yet.
        let _ = child.kill();
        let _ = child.wait();
        for file in [bundle_files::PID, bundle_files::ADDRESS] {
            // It may not have come to that.
            let _ = fs::remove_file(bundle.join(file));
        }
    })
}

/// Lets the shim `child` serve, once all else is done.
fn serve_from(
    child: &Child,
    launcher: Launcher,
    request: &Request,
    bundle: &Path,
    address: &str,
) -> Result<(), StartError> {
    let path = socket::path(address);
    let claim = socket::claim(&path).map_err(StartError::system(format!(
        "bind the socket {}",
        path.display()
    )))?;
    let Claim::Bound(listener) = claim else {
        // Another `start` was faster; a shim without a socket ends.
        return tell(request, bundle, address);
    };
    let pid = child.id().to_string();
    bundle_files::write(&bundle.join(bundle_files::PID), pid.as_bytes())
        .map_err(StartError::system("write the bundle's file \"shim.pid\""))
        .and_then(|()| tell(request, bundle, address))
        .and_then(|()| {
            let given = launcher.give(&listener);
            given.map_err(StartError::system("hand the socket to the shim"))
        })
        .inspect_err(|_| socket::remove(&path))
}

fn spawn(
    cli: &Cli,
    debug: bool,
    bundle: &Path,
    handover: &Handover,
    end: OwnedFd,
) -> Result<Child, StartError> {
    adjust_oom_score();
    let program = std::env::current_exe().map_err(StartError::system("find this program"))?;
    let mut command = Command::new(&program);
    command
        .args(["-namespace", &cli.namespace, "-id", &cli.id])
        .args(["-address", &cli.address])
        .env(Handover::VARIABLE, handover.encode())
        .stdin(Stdio::from(end))
        .stdout(Stdio::null())
        .stderr(log(bundle))
        // Signals to containerd's group are not meant for pods.
        .process_group(0);
    if debug {
        command.arg("-debug");
    }
    command
        .spawn()
        .map_err(StartError::system(format!("run {}", program.display())))
}

/// The fifo that containerd reads the shim's log from. Opened for both
/// directions: it must neither fail nor wait while nobody reads.
fn log(bundle: &Path) -> Stdio {
    let fifo: PathBuf = bundle.join("log");
    File::options()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(fifo)
        .map_or_else(|_| Stdio::null(), Stdio::from)
}

/// When memory runs out, a shim goes a little before containerd does, as with
/// containerd's own shims.
fn adjust_oom_score() {
    let Some(parent) = rustix::process::getppid() else {
        return;
    };
    let parent = format!("/proc/{}/oom_score_adj", parent.as_raw_nonzero());
    let score = fs::read_to_string(parent)
        .ok()
        .and_then(|score| score.trim().parse::<i32>().ok());
    if let Some(score) = score {
        // A rank among processes is not worth failing for.
        let _ = fs::write(
            "/proc/self/oom_score_adj",
            (score + 1).min(1000).to_string(),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::Action;

    fn cli() -> Cli {
        Cli {
            action: Action::Start,
            namespace: "ns".into(),
            id: "c1".into(),
            address: String::new(),
            bundle: None,
            debug: false,
        }
    }

    fn pod_of(config: Option<&str>) -> Result<String, StartError> {
        let dir = tempfile::tempdir().unwrap();
        if let Some(config) = config {
            fs::write(dir.path().join("config.json"), config).unwrap();
        }
        pod(&cli(), dir.path())
    }

    #[test]
    fn the_pod_of_a_bundle_is_in_its_annotations() {
        let member = r#"{"annotations": {"io.kubernetes.cri.container-type": "container",
            "io.kubernetes.cri.sandbox-id": "pod"}}"#;
        assert_eq!(pod_of(Some(member)).unwrap(), "pod");
        assert_eq!(pod_of(Some("{}")).unwrap(), "c1");
        assert_eq!(pod_of(Some(r#"{"annotations": null}"#)).unwrap(), "c1");
        assert_eq!(pod_of(None).unwrap(), "c1");
    }

    #[test]
    fn a_pods_name_that_leads_elsewhere_is_refused() {
        let bad = r#"{"annotations": {"io.kubernetes.cri.container-type": "container",
            "io.kubernetes.cri.sandbox-id": "../x"}}"#;
        let error = pod_of(Some(bad)).unwrap_err().to_string();
        assert!(error.contains("\"../x\""), "{error}");
        pod_of(Some("{")).unwrap_err();
    }
}
