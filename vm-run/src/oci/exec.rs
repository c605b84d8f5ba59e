//! `exec`: a further process in a container.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::attend::Attendant;
use super::channel;
use super::cli::{ExecArgs, GlobalArgs};
use super::create::absolute;
use super::error::OciError;
use super::pid_file;
use super::state::{Record, Root, Status};
use super::wire::Exec;
use crate::signals::{Signals, StopSignal};
use crate::terminal::Terminal;

/// What the process that attends to another one is told.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct Order {
    pub(crate) exec: Exec,
    pub(crate) console_socket: Option<PathBuf>,
}

/// Executes a process; attached, waits for its end and says with what to exit.
pub(crate) fn exec(globals: &GlobalArgs, args: &ExecArgs) -> Result<u8, OciError> {
    refuse_cgroup(args.cgroup.as_deref())?;
    let root = Root::new(globals.root.clone());
    let record = root.open(&args.id)?.record()?;
    if record.status() == Status::Stopped {
        return Err(OciError::ExecStopped);
    }
    let process = process(args, &record)?;
    let terminal = process["terminal"].as_bool() == Some(true);
    let exec = Exec {
        process,
        terminal: terminal.then_some((0, 0)),
        ignore_paused: args.ignore_paused,
        bound: args.detach,
    };
    if !args.detach {
        return attached(&root, args, exec);
    }
    match (terminal, &args.console_socket) {
        (true, None) => return Err(OciError::NoConsole),
        (false, Some(_)) => return Err(OciError::NoTerminal),
        _ => {}
    }
    let order = Order {
        exec,
        console_socket: args.console_socket.as_deref().map(absolute).transpose()?,
    };
    let mut attendant = channel::spawn(globals, "attend", &args.id, &order)?;
    attendant.done()?;
    write_pid(args, attendant.pid())?;
    attendant.release()?;
    Ok(0)
}

/// Below its topmost cgroup, a container has those that it has made, which only the guest knows.
fn refuse_cgroup(path: Option<&str>) -> Result<(), OciError> {
    match path {
        None | Some("" | "/") => Ok(()),
        Some(path) => Err(OciError::Other(format!(
            "--cgroup {path}: a process can only be executed in the container's topmost cgroup, /"
        ))),
    }
}

fn attached(root: &Root, args: &ExecArgs, mut exec: Exec) -> Result<u8, OciError> {
    if args.console_socket.is_some() {
        return Err(OciError::NoTerminal);
    }
    let said = |error: crate::terminal::TerminalError| OciError::Other(error.to_string());
    let terminal = exec
        .terminal
        .map(|_| Terminal::find())
        .transpose()
        .map_err(said)?;
    if let Some(terminal) = &terminal {
        let size = terminal.size().map_err(said)?;
        exec.terminal = Some((size.columns, size.rows));
    }
    let runtime = crate::launch::runtime().map_err(OciError::system("cannot start"))?;
    let status = runtime.block_on(async {
        // Before the process is there: none of them is lost.
        let signals = Signals::new(StopSignal::default())
            .map_err(OciError::system("cannot take over signals"))?;
        let attendant = Attendant::execute(&root.open(&args.id)?, &exec).await?;
        write_pid(args, std::process::id())?;
        let raw = terminal
            .as_ref()
            .map(Terminal::enter_raw)
            .transpose()
            .map_err(said)?;
        let status = attendant.until_its_end(signals, terminal.as_ref()).await;
        drop(raw);
        status
    });
    runtime.shutdown_background();
    status
}

fn write_pid(args: &ExecArgs, pid: u32) -> Result<(), OciError> {
    match &args.pid_file {
        Some(file) => pid_file::write(file, pid),
        None => Ok(()),
    }
}

/// The specification's `process`: that of the file, or the container's own with what the
/// command line says.
fn process(args: &ExecArgs, record: &Record) -> Result<Value, OciError> {
    if let Some(file) = &args.process {
        return read(file);
    }
    if args.args.is_empty() {
        return Err(OciError::NoArgs);
    }
    let mut spec = read(&record.bundle.join("config.json"))?;
    let mut process = spec["process"].take();
    process["args"] = json!(args.args);
    change(&mut process, args)?;
    Ok(process)
}

fn read(path: &Path) -> Result<Value, OciError> {
    let failed = || OciError::system(format!("open {}", path.display()));
    let text = fs::read(path).map_err(failed())?;
    serde_json::from_slice(&text).map_err(|error| failed()(io::Error::from(error)))
}

/// Changes `process` as the options say.
fn change(process: &mut Value, args: &ExecArgs) -> Result<(), OciError> {
    process["terminal"] = json!(args.tty);
    // The container's terminal is another one.
    process["consoleSize"] = Value::Null;
    if let Some(cwd) = &args.cwd {
        process["cwd"] = json!(cwd);
    }
    if let Some(profile) = &args.apparmor {
        process["apparmorProfile"] = json!(profile);
    }
    if let Some(label) = &args.process_label {
        process["selinuxLabel"] = json!(label);
    }
    if args.no_new_privs {
        process["noNewPrivileges"] = json!(true);
    }
    if let Some(user) = &args.user {
        let (uid, gid) = ids(user)?;
        process["user"]["uid"] = json!(uid);
        // A user alone stays in the container's group.
        if let Some(gid) = gid {
            process["user"]["gid"] = json!(gid);
        }
    }
    set_env(&mut process["env"], &args.env);
    let gids = args.additional_gids.iter().map(|gid| json!(gid));
    add(&mut process["user"]["additionalGids"], gids);
    if !args.cap.is_empty() {
        for set in ["bounding", "effective", "permitted"] {
            let names = args.cap.iter().map(|name| json!(name));
            add(&mut process["capabilities"][set], names);
        }
    }
    Ok(())
}

/// A variable that is there already gets the new value.
fn set_env(env: &mut Value, more: &[String]) {
    let name = |variable: &str| variable.split('=').next().map(str::to_owned);
    if let Value::Array(env) = env {
        let is_set_anew = |variable: &Value| {
            let old = variable.as_str().and_then(name);
            more.iter().any(|new| name(new) == old)
        };
        env.retain(|variable| !is_set_anew(variable));
    }
    add(env, more.iter().map(|text| json!(text)));
}

fn add(list: &mut Value, items: impl Iterator<Item = Value>) {
    let mut items = items.peekable();
    if items.peek().is_none() {
        return;
    }
    match list {
        Value::Array(list) => list.extend(items),
        list => *list = items.collect(),
    }
}

fn ids(text: &str) -> Result<(u32, Option<u32>), OciError> {
    let number = |text: &str| {
        let wrong = |_| OciError::Other(format!("--user: {text:?} is not a number"));
        text.parse().map_err(wrong)
    };
    match text.split_once(':') {
        None => Ok((number(text)?, None)),
        Some((uid, gid)) => Ok((number(uid)?, Some(number(gid)?))),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::{Cli, Command};
    use crate::oci::cli::Verb;

    fn parse(args: &[&str]) -> ExecArgs {
        let args = ["vm-run", "exec"].iter().chain(args);
        match Cli::try_parse_from(args).unwrap().command {
            Command::Oci(Verb::Exec(args)) => *args,
            other => panic!("{other:?}"),
        }
    }

    fn changed(args: &[&str]) -> Result<Value, OciError> {
        let mut process = json!({
            "terminal": true, "cwd": "/", "args": ["x"], "env": ["A=1", "B=1"],
            "user": { "uid": 1, "gid": 2, "additionalGids": [3] },
            "capabilities": { "bounding": ["CAP_KILL"] }
        });
        change(&mut process, &parse(args)).map(|()| process)
    }

    #[test]
    fn options_change_the_containers_process() {
        let process = changed(&[
            "-t",
            "-e",
            "B=2",
            "--env=C=3",
            "-u",
            "5:6",
            "-g",
            "7",
            "--cwd=/tmp",
            "-c",
            "CAP_CHOWN",
            "--no-new-privs",
            "id",
            "ls",
            "-l",
            "--",
            "-t",
        ])
        .unwrap();
        assert_eq!(process["env"], json!(["A=1", "B=2", "C=3"]));
        let user = json!({ "uid": 5, "gid": 6, "additionalGids": [3, 7] });
        assert_eq!(process["user"], user);
        assert_eq!(process["cwd"], "/tmp");
        let capabilities = &process["capabilities"];
        assert_eq!(capabilities["bounding"], json!(["CAP_KILL", "CAP_CHOWN"]));
        assert_eq!(capabilities["effective"], json!(["CAP_CHOWN"]));
        assert_eq!(capabilities["ambient"], Value::Null);
        assert_eq!(process["noNewPrivileges"], true);
        assert_eq!(process["terminal"], true);
    }

    #[test]
    fn a_user_without_a_group_keeps_the_containers_one() {
        let process = changed(&["-u", "5", "id", "sh"]).unwrap();
        let user = json!({ "uid": 5, "gid": 2, "additionalGids": [3] });
        assert_eq!(process["user"], user);
    }

    #[test]
    fn what_is_not_said_stays() {
        let process = changed(&["id", "sh"]).unwrap();
        assert_eq!(process["terminal"], false);
        assert_eq!(process["user"]["uid"], 1);
        assert_eq!(process["capabilities"], json!({ "bounding": ["CAP_KILL"] }));
        assert_eq!(process["noNewPrivileges"], Value::Null);
        assert_eq!(process["env"], json!(["A=1", "B=1"]));
    }

    #[test]
    fn the_command_begins_behind_the_identifier() {
        let args = parse(&["-d", "id", "ls", "-d", "--tty", "x"]);
        assert!(args.detach && !args.tty);
        assert_eq!(args.args, ["ls", "-d", "--tty", "x"]);
        changed(&["-u", "root", "id", "x"]).unwrap_err();
    }
}
