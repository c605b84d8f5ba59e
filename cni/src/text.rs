//! What plugins write, made fit for a person's terminal.

/// Longest line that is shown, in characters.
const MAX_LINE: usize = 240;

/// A text of somebody else as one bounded line without control characters.
pub(crate) fn one_line(text: &str) -> String {
    let mut line = String::new();
    for (count, character) in text.trim().chars().enumerate() {
        if count == MAX_LINE {
            line.push('…');
            break;
        }
        if is_plain(character) {
            line.push(character);
        } else {
            line.extend(character.escape_default());
        }
    }
    line
}

/// The lines of a plugin's log, blank ones left out, as one bounded line.
pub(crate) fn joined_lines(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let lines: Vec<_> = text
        .split(['\n', '\r'])
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect();
    one_line(&lines.join("; "))
}

/// Neither a control character nor one that changes the direction of text.
fn is_plain(character: char) -> bool {
    !character.is_control()
        && !matches!(
            character,
            '\u{200e}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}'
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escape_sequences_do_not_reach_the_terminal() {
        assert_eq!(one_line("\u{1b}[2Jown\ned"), "\\u{1b}[2Jown\\ned");
        assert_eq!(one_line("a\u{202e}b"), "a\\u{202e}b");
        assert_eq!(one_line(" grün\n"), "grün");
    }

    #[test]
    fn a_line_has_a_bound() {
        assert_eq!(one_line(&"x".repeat(1 << 20)).chars().count(), MAX_LINE + 1);
    }

    #[test]
    fn a_log_becomes_one_line() {
        assert_eq!(
            joined_lines(b"panic: nil\n\n\tgoroutine 1\r\n\xff"),
            "panic: nil; goroutine 1; \u{fffd}"
        );
    }
}
