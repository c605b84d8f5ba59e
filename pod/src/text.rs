//! Hostile text made fit for a person's terminal.

/// Longest line that is shown, in characters.
const MAX_LINE: usize = 240;

/// The last `count` lines of what a guest wrote, each bounded, with control
/// characters escaped so that none of them reaches a terminal.
#[must_use]
pub fn last_lines(text: &str, count: usize) -> Vec<String> {
    let mut lines: Vec<_> = text
        .rsplit(['\n', '\r'])
        .filter(|line| line.chars().any(|c| !c.is_control() && !c.is_whitespace()))
        .take(count)
        // The kernel's marks of a message's level, which precede it.
        .map(|line| one_line(line.trim_start_matches('\u{1}')))
        .collect();
    lines.reverse();
    lines
}

/// A text of somebody else as one bounded line without control characters.
#[must_use]
pub fn one_line(text: &str) -> String {
    let mut line = String::new();
    for (count, character) in text.trim_end().chars().enumerate() {
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

/// Neither a control character nor one that changes the direction of text.
fn is_plain(character: char) -> bool {
    !character.is_control()
        && !matches!(character, '\u{200e}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_last_lines_are_kept_in_order() {
        assert_eq!(last_lines("a\nb\r\n\nc\n", 2), ["b", "c"]);
        assert_eq!(last_lines("\u{1}\n \n", 5), Vec::<String>::new());
        assert_eq!(
            last_lines("\u{1}[ 1.2] words\u{1}\n", 5),
            ["[ 1.2] words\\u{1}"]
        );
    }

    #[test]
    fn escape_sequences_do_not_reach_the_terminal() {
        assert_eq!(
            one_line("\u{1b}]0;own\u{7}ed\u{9b}2J"),
            "\\u{1b}]0;own\\u{7}ed\\u{9b}2J"
        );
        assert_eq!(one_line("a\u{202e}b"), "a\\u{202e}b");
        assert_eq!(one_line("grün\n"), "grün");
    }

    #[test]
    fn a_line_has_a_bound() {
        assert_eq!(one_line(&"x".repeat(1 << 20)).chars().count(), MAX_LINE + 1);
    }
}
