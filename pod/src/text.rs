//! Hostile text made fit for a person's terminal.

/// Longest line that is shown, in characters.
const MAX_LINE: usize = 240;

/// Begins the mark of a message's level, of which a kernel's console shows this much.
const LEVEL: char = '\u{1}';

/// The last `count` lines of what a guest wrote, each bounded, with control
/// characters escaped so that none of them reaches a terminal.
#[must_use]
pub fn last_lines(text: &str, count: usize) -> Vec<String> {
    let mut lines: Vec<_> = text
        .rsplit(['\n', '\r'])
        .filter(|line| line.chars().any(|c| !c.is_control() && !c.is_whitespace()))
        .take(count)
        // The kernel's marks of a message's level, which precede it.
        .map(|line| one_line(line.trim_start_matches(LEVEL)))
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

/// A text of somebody else, of any length, with its lines and tabs but without any other
/// control character.
#[must_use]
pub fn lines(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '\n' | '\t' => plain.push(character),
            // Before a line feed it means nothing, and elsewhere that a line is written over.
            '\r' => {}
            // The kernel's marks of a message's level.
            LEVEL => {}
            _ if is_plain(character) => plain.push(character),
            _ => plain.extend(character.escape_default()),
        }
    }
    plain
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
    fn lines_stay_lines_and_nothing_else_moves_the_cursor() {
        assert_eq!(
            lines("\u{1}a\tb\r\nc\rd\u{8}\u{1b}[2J\u{202e}"),
            "a\tb\ncd\\u{8}\\u{1b}[2J\\u{202e}"
        );
    }

    #[test]
    fn a_line_has_a_bound() {
        assert_eq!(one_line(&"x".repeat(1 << 20)).chars().count(), MAX_LINE + 1);
    }
}
