//! The trace of which a pod's start is a part, as its caller names it.

use std::fmt::{self, Display};
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// A span of somebody else: `traceparent` of W3C's Trace Context, level 1, section 3.2.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct TraceParent {
    trace: u128,
    span: u64,
    flags: u8,
}

/// What is no trace parent.
#[derive(Debug, Error, Eq, PartialEq)]
#[error("is not VERSION-TRACE-SPAN-FLAGS in hexadecimal digits")]
pub struct NotATraceParent;

impl TraceParent {
    /// Identifier of the trace, 32 hexadecimal digits.
    #[must_use]
    pub fn trace_id(&self) -> String {
        format!("{:032x}", self.trace)
    }

    /// Identifier of the span, 16 hexadecimal digits.
    #[must_use]
    pub fn span_id(&self) -> String {
        format!("{:016x}", self.span)
    }
}

impl FromStr for TraceParent {
    type Err = NotATraceParent;

    /// Later versions may have further parts, which are not of interest.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut parts = text.split('-');
        let mut next = |digits| {
            let part = parts.next().filter(|part| part.len() == digits);
            let part = part.filter(|part| part.bytes().all(is_digit));
            part.and_then(|part| u128::from_str_radix(part, 16).ok())
        };
        let (version, trace) = (next(2), next(32));
        let span = next(16).and_then(|span| u64::try_from(span).ok());
        let flags = next(2).and_then(|flags| u8::try_from(flags).ok());
        let last = parts.next().is_none();
        match (version, trace, span, flags) {
            (Some(0xff), ..) => Err(NotATraceParent),
            (Some(0), ..) if !last => Err(NotATraceParent),
            (Some(_), Some(trace @ 1..), Some(span @ 1..), Some(flags)) => {
                Ok(Self { trace, span, flags })
            }
            _ => Err(NotATraceParent),
        }
    }
}

/// Those in capitals are not allowed.
fn is_digit(byte: u8) -> bool {
    matches!(byte, b'0'..=b'9' | b'a'..=b'f')
}

impl Display for TraceParent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { trace, span, flags } = self;
        write!(f, "00-{trace:032x}-{span:016x}-{flags:02x}")
    }
}

impl TryFrom<String> for TraceParent {
    type Error = NotATraceParent;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<TraceParent> for String {
    fn from(parent: TraceParent) -> Self {
        parent.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXAMPLE: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn the_standard_s_example_is_read_and_written() {
        let parent: TraceParent = EXAMPLE.parse().unwrap();
        assert_eq!(parent.trace_id(), "0af7651916cd43dd8448eb211c80319c");
        assert_eq!(parent.span_id(), "b7ad6b7169203331");
        assert_eq!(parent.to_string(), EXAMPLE);
        let later = format!("01{}-and-more", &EXAMPLE[2..]);
        assert_eq!(later.parse(), Ok(parent));
        let json = serde_json::to_string(&parent).unwrap();
        assert_eq!(serde_json::from_str::<TraceParent>(&json).unwrap(), parent);
    }

    #[test]
    fn all_else_is_refused() {
        let zero_trace = EXAMPLE.replace("0af7651916cd43dd8448eb211c80319c", &"0".repeat(32));
        let zero_span = EXAMPLE.replace("b7ad6b7169203331", &"0".repeat(16));
        let more = format!("{EXAMPLE}-01");
        for text in [
            "",
            "00",
            "00--",
            &EXAMPLE.to_uppercase(),
            &EXAMPLE.replacen("00-", "ff-", 1),
            &EXAMPLE.replace("01", "+1"),
            &EXAMPLE.replace("b7ad", "b7"),
            &zero_trace,
            &zero_span,
            &more,
            "00-é-é-é",
        ] {
            assert_eq!(text.parse::<TraceParent>(), Err(NotATraceParent), "{text}");
        }
    }
}
