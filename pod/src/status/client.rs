//! The asker's side of a pod's socket.

use std::io;
use std::path::Path;
use std::time::Duration;

use thiserror::Error;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use crate::text;

/// Largest answer, bytes: some thousand containers.
const MAX_ANSWER: u64 = 16 << 20;

/// Most header fields of an answer.
const MAX_FIELDS: usize = 32;

/// Why a pod does not say what it was asked.
#[derive(Debug, Error)]
pub enum AskError {
    /// Nobody serves the socket, or whoever does ended meanwhile.
    #[error("its shim cannot be asked: {0}")]
    System(#[from] io::Error),
    /// It took too long.
    #[error("its shim does not answer within {} s", .0.as_secs())]
    Late(Duration),
    /// The pod cannot say it, in its own words.
    #[error("{0}")]
    Refused(String),
    /// That was no answer.
    #[error("its shim answers nonsense")]
    Nonsense,
}

/// Asks the pod whose socket is `socket` for `path`, and waits for `limit` at most.
///
/// # Errors
/// [`AskError`].
pub async fn ask(socket: &Path, path: &str, limit: Duration) -> Result<Vec<u8>, AskError> {
    let asked = async {
        let mut stream = UnixStream::connect(socket).await?;
        let request = format!("GET {path} HTTP/1.1\r\nHost: nacre\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        stream.take(MAX_ANSWER).read_to_end(&mut answer).await?;
        Ok::<_, io::Error>(answer)
    };
    match tokio::time::timeout(limit, asked).await {
        Ok(answer) => body(answer?),
        Err(_) => Err(AskError::Late(limit)),
    }
}

fn body(mut answer: Vec<u8>) -> Result<Vec<u8>, AskError> {
    let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
    let mut response = httparse::Response::new(&mut fields);
    let Ok(httparse::Status::Complete(head)) = response.parse(&answer) else {
        return Err(AskError::Nonsense);
    };
    let length = response
        .headers
        .iter()
        .find(|field| field.name.eq_ignore_ascii_case("content-length"))
        .and_then(|field| std::str::from_utf8(field.value).ok()?.parse::<usize>().ok());
    let is_ok = response.code == Some(200);
    let body = answer.split_off(head);
    match length {
        Some(length) if length != body.len() => Err(AskError::Nonsense),
        _ if is_ok => Ok(body),
        _ => Err(AskError::Refused(text::one_line(&String::from_utf8_lossy(
            &body,
        )))),
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::UnixListener;

    use super::super::server::{Answer, serve};
    use super::*;

    const LIMIT: Duration = Duration::from_secs(5);

    #[tokio::test]
    async fn answers_and_refusals_arrive() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let listener = UnixListener::bind(&path).unwrap();
        tokio::spawn(serve(listener, |path| async move {
            match path.as_str() {
                "/a" => Answer::ok("text/plain", "x".repeat(1 << 20)),
                _ => Answer::unavailable("not\u{1b} now\nor later"),
            }
        }));
        assert_eq!(ask(&path, "/a", LIMIT).await.unwrap().len(), 1 << 20);
        let error = ask(&path, "/b", LIMIT).await.unwrap_err();
        assert_eq!(error.to_string(), "not\\u{1b} now\\nor later");
    }

    #[tokio::test(start_paused = true)]
    async fn who_does_not_answer_is_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let error = ask(&path, "/a", LIMIT).await.unwrap_err();
        assert!(matches!(error, AskError::System(_)), "{error}");
        let _listener = UnixListener::bind(&path).unwrap();
        let error = ask(&path, "/a", LIMIT).await.unwrap_err();
        assert_eq!(error.to_string(), "its shim does not answer within 5 s");
    }

    #[test]
    fn half_an_answer_is_none() {
        for answer in [
            "",
            "HTTP/1.1 200 OK\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nfour",
            "hello\r\n\r\n",
        ] {
            let answer = body(answer.into());
            assert!(matches!(answer, Err(AskError::Nonsense)), "{answer:?}");
        }
    }
}
