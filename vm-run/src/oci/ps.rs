//! `ps`: the processes of a container, in the columns of ps(1).

use nacre_pod::processes::GuestProcess;

use super::cli::{ListFormat, PsArgs};
use super::error::OciError;
use super::list::print;
use super::local_time::LocalTime;
use super::state::Root;
use super::verb;
use super::wire::{Answer, Request};
use crate::pods;

/// Number of the driver of pseudoterminals, and of the last of its kind.
const PTS: std::ops::RangeInclusive<u32> = 136..=143;

/// Prints the processes of a container, or else of the pod that its identifier means.
pub(crate) fn processes(root: &Root, args: &PsArgs) -> Result<(), OciError> {
    let columns = columns(&args.options)?;
    let id = &args.container.id;
    let home = match root.open(id) {
        Err(missing @ (OciError::Missing | OciError::Id)) => {
            return match pods::processes::processes(id, args.format) {
                Ok(true) => Ok(()),
                Ok(false) => Err(missing),
                Err(error) => Err(OciError::Other(error.to_string())),
            };
        }
        opened => opened?,
    };
    let processes = match verb::ask(&home, &Request::Processes) {
        Ok(Answer::Processes(processes)) => processes,
        Err(OciError::NotRunning) => Vec::new(),
        Err(error) => return Err(error),
        Ok(_) => return Err(OciError::Nonsense),
    };
    match args.format {
        ListFormat::Json => {
            let pids: Vec<_> = processes.iter().map(|process| process.pid).collect();
            print(&serde_json::json!(pids).to_string())
        }
        ListFormat::Table => {
            let now = LocalTime::now_in_seconds();
            print(&table(&columns, &processes, now))
        }
    }
}

/// A column of ps(1): its name for `-o`, its title, its least width, and on which side it is
/// padded.
struct Column {
    name: &'static str,
    title: &'static str,
    width: usize,
    is_right: bool,
    cell: fn(&GuestProcess, i64) -> String,
}

const fn column(
    name: &'static str,
    title: &'static str,
    width: isize,
    cell: fn(&GuestProcess, i64) -> String,
) -> Column {
    Column {
        name,
        title,
        width: width.unsigned_abs(),
        is_right: width > 0,
        cell,
    }
}

/// Those that there are; a width below zero stands for a column whose text is on the left.
const COLUMNS: &[Column] = &[
    column("user", "UID", -8, |process, _| user(process.uid)),
    column("uid", "UID", 5, |process, _| process.uid.to_string()),
    column("pid", "PID", 7, |process, _| process.pid.to_string()),
    column("ppid", "PPID", 7, |process, _| process.parent.to_string()),
    column("c", "C", 2, |process, now| share(process, now).to_string()),
    column("stime", "STIME", -5, |process, now| {
        LocalTime::of(process.started_at).beside(&LocalTime::of(now))
    }),
    column("tty", "TTY", -8, |process, _| terminal(process.terminal)),
    column("time", "TIME", 8, |process, _| duration(process.cpu_ms)),
    column("stat", "STAT", -4, |process, _| process.state.clone()),
    column("vsz", "VSZ", 6, |process, _| {
        (process.size >> 10).to_string()
    }),
    column("rss", "RSS", 5, |process, _| {
        (process.resident >> 10).to_string()
    }),
    column("comm", "COMMAND", -15, |process, _| process.name.clone()),
    column("cmd", "CMD", -27, |process, _| command(process)),
    column("args", "COMMAND", -27, |process, _| command(process)),
];

/// Of `ps -ef`.
const FULL: &[&str] = &["user", "pid", "ppid", "c", "stime", "tty", "time", "cmd"];

fn find(name: &str) -> Option<&'static Column> {
    COLUMNS.iter().find(|column| column.name == name)
}

/// What options of ps(1) ask for: all processes of the container in any case, in the columns
/// of `-f`, or in those that `-o` lists.
fn columns(options: &[String]) -> Result<Vec<&'static Column>, OciError> {
    let mut chosen = Vec::new();
    let mut options = options.iter().map(String::as_str);
    while let Some(option) = options.next() {
        let letters = option.strip_prefix('-').unwrap_or(option);
        let (letters, list) = match letters.split_once('o') {
            Some((letters, "")) => (letters, options.next()),
            Some((letters, list)) => (letters, Some(list)),
            None => (letters, Some("")),
        };
        if !letters.chars().all(|letter| "efA".contains(letter)) {
            return Err(unknown(option));
        }
        let list = list.ok_or_else(|| unknown(option))?;
        for name in list.split(',').filter(|name| !name.is_empty()) {
            let named = format!("-o {name}");
            chosen.push(find(name).ok_or_else(|| unknown(&named))?);
        }
    }
    if chosen.is_empty() {
        chosen = FULL.iter().filter_map(|name| find(name)).collect();
    }
    Ok(chosen)
}

fn unknown(option: &str) -> OciError {
    let names: Vec<_> = COLUMNS.iter().map(|column| column.name).collect();
    OciError::Other(format!(
        "ps: {option}: there are -e, -f and -o with a list of {}",
        names.join(",")
    ))
}

fn table(columns: &[&Column], processes: &[GuestProcess], now: i64) -> String {
    let titles = columns.iter().map(|column| column.title.to_owned());
    let mut rows = vec![titles.collect::<Vec<_>>()];
    rows.extend(processes.iter().map(|process| {
        let cells = columns.iter().map(|column| (column.cell)(process, now));
        cells.collect::<Vec<_>>()
    }));
    let widths: Vec<_> = columns
        .iter()
        .enumerate()
        .map(|(index, column)| {
            let cells = rows.iter().filter_map(|row| row.get(index));
            let widest = cells.map(|cell| cell.chars().count()).max();
            widest.unwrap_or(0).max(column.width)
        })
        .collect();
    let mut text = String::new();
    for row in rows {
        let cells = row.iter().zip(columns).zip(&widths);
        let cells: Vec<_> = cells
            .map(|((cell, column), &width)| {
                if column.is_right {
                    format!("{cell:>width$}")
                } else {
                    format!("{cell:<width$}")
                }
            })
            .collect();
        text.push_str(cells.join(" ").trim_end());
        text.push('\n');
    }
    text
}

/// By name where root is concerned: other names are the container's, or the host's.
fn user(uid: u32) -> String {
    match uid {
        0 => "root".to_owned(),
        uid => uid.to_string(),
    }
}

fn command(process: &GuestProcess) -> String {
    match process.arguments.as_str() {
        "" => format!("[{}]", process.name),
        arguments => arguments.to_owned(),
    }
}

/// Of one CPU's time since its start, percent.
fn share(process: &GuestProcess, now: i64) -> u64 {
    const MOST: u64 = 99;
    let seconds = now.saturating_sub(process.started_at).max(1);
    let milliseconds = u64::try_from(seconds).unwrap_or(1).saturating_mul(1000);
    (process.cpu_ms.saturating_mul(100) / milliseconds).min(MOST)
}

/// As the container's processes know it.
fn terminal(number: u32) -> String {
    let major = (number >> 8) & 0xfff;
    let minor = (number & 0xff) | ((number >> 12) & 0xf_ff00);
    match (major, minor) {
        (0, _) => "?".to_owned(),
        (5, 1) => "console".to_owned(),
        (major, minor) if PTS.contains(&major) => {
            let number = (major - PTS.start()) * 256 + minor;
            format!("pts/{number}")
        }
        (major, minor) => format!("{major}:{minor}"),
    }
}

fn duration(milliseconds: u64) -> String {
    let seconds = milliseconds / 1000;
    let (days, hours) = (seconds / 86_400, seconds / 3600 % 24);
    let (minutes, seconds) = (seconds / 60 % 60, seconds % 60);
    let time = format!("{hours:02}:{minutes:02}:{seconds:02}");
    match days {
        0 => time,
        days => format!("{days}-{time}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(options: &[&str]) -> Result<Vec<&'static str>, OciError> {
        let options: Vec<_> = options.iter().map(|&option| option.to_owned()).collect();
        let columns = columns(&options)?;
        Ok(columns.iter().map(|column| column.name).collect())
    }

    #[test]
    fn options_choose_columns() {
        for options in [&[][..], &["-ef"], &["-e", "-f"], &["ef"], &["-A"]] {
            assert_eq!(of(options).unwrap(), FULL, "{options:?}");
        }
        for options in [
            &["-o", "pid,args"][..],
            &["-eo", "pid,args"],
            &["-opid,args"],
            &["-o", "pid", "-o", "args"],
        ] {
            assert_eq!(of(options).unwrap(), ["pid", "args"], "{options:?}");
        }
        for options in [&["aux"][..], &["-o"], &["-o", "moon"], &["--forest"]] {
            let error = of(options).unwrap_err().to_string();
            assert!(error.starts_with("ps: "), "{error}");
        }
    }

    #[test]
    fn the_table_is_that_of_ps() {
        let first = GuestProcess {
            pid: 312,
            started_at: 0,
            cpu_ms: 65_000,
            name: "sleep".into(),
            arguments: "sleep 1000".into(),
            ..Default::default()
        };
        let second = GuestProcess {
            pid: 400,
            parent: 312,
            uid: 1000,
            terminal: 0x8801,
            name: "ended".into(),
            ..first.clone()
        };
        let second = GuestProcess {
            arguments: String::new(),
            ..second
        };
        let columns = columns(&["-f".to_owned()]).unwrap();
        let table = table(&columns, &[first, second], 130);
        let lines: Vec<_> = table.lines().collect();
        let title = "UID          PID    PPID  C STIME TTY          TIME CMD";
        assert_eq!(lines[0], title);
        assert!(lines[1].starts_with("root         312       0 50 "));
        assert!(lines[1].ends_with(" ?        00:01:05 sleep 1000"));
        assert!(lines[2].starts_with("1000         400     312 50 "));
        assert!(lines[2].ends_with(" pts/1    00:01:05 [ended]"));
    }

    #[test]
    fn long_times_and_other_terminals_are_told() {
        assert_eq!(duration(90_061_000), "1-01:01:01");
        assert_eq!(terminal(0), "?");
        assert_eq!(terminal(0x0501), "console");
        assert_eq!(terminal(0x0440), "4:64");
        assert_eq!(terminal(137 << 8), "pts/256");
    }
}
