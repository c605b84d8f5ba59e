//! Whether docs/troubleshooting.md tells of every message that Nacre may print.

// What cannot be read is a test that fails.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};

/// Crates whose errors and log lines users see.
const CRATES: [&str; 5] = ["cni", "image", "pod", "shim", "vm-run"];

/// Files and folders that have their reasons as plain texts, which an error then quotes.
const REASONS: [&str; 7] = [
    "agent/src/container/lookup.rs",
    "agent/src/container/spec",
    "agent/src/container/update",
    "image/src/source",
    "image/src/unpack",
    "pod/src/host/share.rs",
    "pod/src/spec",
];

/// How a message that has a text of its own begins in the source.
const MARKS: [&str; 3] = ["#[error(", "log::warn!(", "log::error!("];

/// Texts that the page need not have, each with why.
const LEFT_OUT: [(&str, &str); 3] = [
    (
        "needs a network namespace",
        "vm-run always names one to cni",
    ),
    (
        "is not of the form KEY=VALUE without",
        "vm-run gives no arguments to plugins",
    ),
    (
        "is not VERSION-TRACE-SPAN-FLAGS in hexadecimal digits",
        "a trace that makes no sense is ignored",
    ),
];

#[test]
fn the_page_tells_of_every_message() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let page = words(&fs::read_to_string(root.join("docs/troubleshooting.md")).unwrap());
    let mut messages = Vec::new();
    for name in CRATES {
        for source in sources(&root.join(name).join("src")) {
            messages.extend(MARKS.iter().flat_map(|mark| marked(&source, mark)));
        }
    }
    for place in REASONS {
        for source in sources(&root.join(place)) {
            let is_sentence = |text: &String| text.matches(' ').count() >= 2;
            messages.extend(literals(&source).into_iter().filter(is_sentence));
        }
    }
    assert!(messages.len() > 300, "{} messages found", messages.len());
    let said: Vec<_> = messages.iter().filter_map(|text| said(text)).collect();
    for (text, _) in LEFT_OUT {
        assert!(said.iter().any(|said| said == text), "nobody says {text:?}");
    }
    let is_left_out = |said: &str| LEFT_OUT.iter().any(|(text, _)| *text == said);
    let missing: Vec<_> = said
        .into_iter()
        .filter(|said| !page.contains(said) && !is_left_out(said))
        .collect();
    assert!(
        missing.is_empty(),
        "docs/troubleshooting.md lacks:\n{}",
        missing.join("\n")
    );
}

/// The longest part of a message that is always the same, if it has any words of its own. What
/// is in parentheses is advice.
fn said(message: &str) -> Option<String> {
    let mut fixed = String::new();
    let mut depth = 0_u32;
    for c in message.chars() {
        match c {
            '{' | '(' => depth += 1,
            '}' | ')' => {
                depth = depth.saturating_sub(1);
                fixed.push(':');
            }
            _ if depth == 0 => fixed.push(c),
            _ => {}
        }
    }
    fixed
        .split([':', ';', '"'])
        .map(words)
        .filter(|part| part.contains(' '))
        .max_by_key(String::len)
}

/// With single spaces, no marks of code, and nothing else before and after a sentence.
fn words(text: &str) -> String {
    let text = text.replace('`', "");
    let words: Vec<_> = text.split_whitespace().collect();
    words
        .join(" ")
        .trim_matches([' ', ',', '.', '-'])
        .to_owned()
}

/// What follows each `mark` as a literal.
fn marked(source: &str, mark: &str) -> Vec<String> {
    source
        .split(mark)
        .skip(1)
        .filter(|rest| rest.trim_start().starts_with('"'))
        .filter_map(|rest| literals(rest).into_iter().next())
        .collect()
}

/// All texts between quotation marks, outside of comments and attributes.
fn literals(source: &str) -> Vec<String> {
    let is_code = |line: &&str| !line.trim_start().starts_with("//");
    let code: Vec<_> = source.lines().filter(is_code).collect();
    let code = code.join("\n").replace("'\"'", "");
    let mut found = Vec::new();
    let mut chars = code.chars();
    while chars.any(|c| c == '"') {
        let mut text = String::new();
        while let Some(c) = chars.next().filter(|c| *c != '"') {
            match c {
                '\\' => match chars.next() {
                    Some('\n') | None => text.push(' '),
                    Some(escaped) => text.push(escaped),
                },
                _ => text.push(c),
            }
        }
        found.push(text);
    }
    found
}

/// The sources below a place, or the one there, each up to its tests.
fn sources(place: &Path) -> Vec<String> {
    files(place)
        .iter()
        .map(|file| fs::read_to_string(file).unwrap())
        .map(|text| text.split("#[cfg(test)]").next().unwrap().to_owned())
        .collect()
}

fn files(place: &Path) -> Vec<PathBuf> {
    if place.is_dir() {
        let entries = fs::read_dir(place).unwrap();
        entries
            .flat_map(|entry| files(&entry.unwrap().path()))
            .collect()
    } else {
        let name = place.to_string_lossy();
        let is_program = name.ends_with(".rs") && !name.ends_with("_test.rs");
        is_program.then(|| place.to_owned()).into_iter().collect()
    }
}
