//! `console`: what a guest's kernel has written to its console.

use std::time::Duration;

use nacre_pod::status::{self, Known};

use super::cli::ConsoleArgs;
use super::{PodsError, find, print};

/// How often a console that is followed is looked at.
const INTERVAL: Duration = Duration::from_millis(500);

/// Stands for what was written faster than it could be looked at.
const GAP: &str = "\n[part of the console was missed]\n";

pub(super) async fn console(args: &ConsoleArgs) -> Result<(), PodsError> {
    let pod = find::one(&args.pod)?;
    let seen = read(&pod, args).await?;
    print(&seen)?;
    if args.follow {
        follow(&pod, args, seen).await?;
    }
    Ok(())
}

/// Prints what is written after `seen`, until the pod is gone.
async fn follow(pod: &Known, args: &ConsoleArgs, mut seen: String) -> Result<(), PodsError> {
    loop {
        tokio::time::sleep(INTERVAL).await;
        let now = match read(pod, args).await {
            Ok(now) => now,
            Err(_) if is_gone(pod)? => return Ok(()),
            Err(error) => return Err(error),
        };
        let (news, is_whole) = since(&seen, &now);
        if !is_whole {
            print(GAP)?;
        }
        print(news)?;
        seen = now;
    }
}

async fn read(pod: &Known, args: &ConsoleArgs) -> Result<String, PodsError> {
    let bytes = find::ask(pod, status::CONSOLE, args.patience.limit()).await?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn is_gone(pod: &Known) -> Result<bool, PodsError> {
    Ok(!find::all()?.contains(pod))
}

/// What `now`, the newest part of a text, has after `seen`, which was that before; and whether
/// nothing is missing between the two.
fn since<'a>(seen: &str, now: &'a str) -> (&'a str, bool) {
    if seen.is_empty() {
        return (now, true);
    }
    // Where the text was cut, half a character may stand.
    let whole = now.trim_start_matches(char::REPLACEMENT_CHARACTER);
    seen.char_indices()
        .find_map(|(start, _)| whole.strip_prefix(&seen[start..]))
        .map_or((now, false), |news| (news, true))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_new_is_printed_and_a_gap_is_told() {
        assert_eq!(since("", "abc"), ("abc", true));
        assert_eq!(since("abc", "abc"), ("", true));
        assert_eq!(since("abc", "abcde"), ("de", true));
        assert_eq!(since("abcd", "cdef"), ("ef", true));
        assert_eq!(since("grün", "\u{fffd}n und"), (" und", true));
        assert_eq!(since("abc", "xyz"), ("xyz", false));
    }
}
