//! The server's side of a pod's socket: HTTP/1, one request a connection.
//!
//! Whoever asks is root on the host; it is bounded all the same, so that a caller that hangs
//! takes nothing from the pod.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;

use crate::text;

/// Largest head of a request, bytes, and the number of its header fields.
const MAX_HEAD: usize = 8 << 10;
const MAX_FIELDS: usize = 64;

/// Connections that are served at a time; further ones wait.
const CONNECTIONS: usize = 4;

/// How long a connection may last.
const PATIENCE: Duration = Duration::from_secs(10);

/// When connections are accepted again after that has failed.
const RETRY: Duration = Duration::from_secs(1);

/// The answer to a request.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Answer {
    status: &'static str,
    content_type: &'static str,
    body: String,
}

impl Answer {
    /// What was asked for.
    #[must_use]
    pub fn ok(content_type: &'static str, body: String) -> Self {
        Self {
            status: "200 OK",
            content_type,
            body,
        }
    }

    /// There is nothing at this path.
    #[must_use]
    pub fn not_found() -> Self {
        Self::failed("404 Not Found", "there is nothing at this path")
    }

    /// The pod cannot say it now, because of `reason`.
    #[must_use]
    pub fn unavailable(reason: &str) -> Self {
        Self::failed("503 Service Unavailable", reason)
    }

    fn failed(status: &'static str, reason: &str) -> Self {
        Self {
            status,
            content_type: "text/plain; charset=utf-8",
            // It may be in a guest's words.
            body: format!("{}\n", text::one_line(reason)),
        }
    }

    fn bytes(&self, with_body: bool) -> Vec<u8> {
        let Self {
            status,
            content_type,
            body,
        } = self;
        let length = body.len();
        let head = format!(
            "HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {length}\r\n\
             Connection: close\r\n\r\n"
        );
        let body = if with_body { body.as_str() } else { "" };
        [head.as_bytes(), body.as_bytes()].concat()
    }
}

/// Answers requests for ever: `answer` is given the path.
pub async fn serve<F>(listener: UnixListener, answer: impl Fn(String) -> F + Send + Sync + 'static)
where
    F: Future<Output = Answer> + Send,
{
    let answer = Arc::new(answer);
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        // It is never closed.
        let place = places.clone().acquire_owned().await;
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                log::debug!("the pod's status: {error}");
                tokio::time::sleep(RETRY).await;
                continue;
            }
        };
        let answer = answer.clone();
        tokio::spawn(async move {
            let _place = place;
            // Who does not take the answer goes without.
            let _ = tokio::time::timeout(PATIENCE, attend(stream, &*answer)).await;
        });
    }
}

async fn attend<F>(mut stream: UnixStream, answer: &impl Fn(String) -> F) -> std::io::Result<()>
where
    F: Future<Output = Answer>,
{
    let mut head = Vec::with_capacity(1024);
    let request = loop {
        match parse(&head) {
            Parsed::Partial if head.len() < MAX_HEAD => {}
            Parsed::Partial => break Err("431 Request Header Fields Too Large"),
            Parsed::Nonsense => break Err("400 Bad Request"),
            Parsed::Request { method, path } => break Ok((method, path)),
        }
        if stream.read_buf(&mut head).await? == 0 {
            return Ok(());
        }
    };
    let bytes = match request {
        Err(status) => Answer::failed(status, "this is no request").bytes(true),
        Ok((method, path)) => match method.as_str() {
            "GET" => answer(path).await.bytes(true),
            "HEAD" => answer(path).await.bytes(false),
            _ => {
                Answer::failed("405 Method Not Allowed", "all that can be done is GET").bytes(true)
            }
        },
    };
    stream.write_all(&bytes).await?;
    stream.shutdown().await
}

enum Parsed {
    Partial,
    Nonsense,
    Request { method: String, path: String },
}

fn parse(head: &[u8]) -> Parsed {
    let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
    let mut request = httparse::Request::new(&mut fields);
    match request.parse(head) {
        Ok(status) if status.is_partial() => Parsed::Partial,
        Ok(_) => Parsed::Request {
            method: request.method.unwrap_or_default().to_owned(),
            // Scrapers may add a query.
            path: match request.path.unwrap_or_default().split_once('?') {
                Some((path, _)) => path.to_owned(),
                None => request.path.unwrap_or_default().to_owned(),
            },
        },
        Err(_) => Parsed::Nonsense,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn socket() -> (tempfile::TempDir, std::path::PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let listener = UnixListener::bind(&path).unwrap();
        tokio::spawn(serve(listener, |path| async move {
            match path.as_str() {
                "/there" => Answer::ok("text/plain", "found".into()),
                _ => Answer::not_found(),
            }
        }));
        (dir, path)
    }

    async fn say(path: &std::path::Path, bytes: &[u8]) -> String {
        let mut stream = UnixStream::connect(path).await.unwrap();
        // It may be closed before all is sent.
        let _ = stream.write_all(bytes).await;
        let mut said = Vec::new();
        let _ = stream.read_to_end(&mut said).await;
        String::from_utf8(said).unwrap()
    }

    #[tokio::test]
    async fn a_request_is_answered_and_the_connection_ends() {
        let (_dir, path) = socket();
        let said = say(&path, b"GET /there?x=1 HTTP/1.1\r\nHost: x\r\n\r\n").await;
        assert!(said.starts_with("HTTP/1.1 200 OK\r\n"), "{said}");
        assert!(said.contains("\r\nContent-Length: 5\r\n"), "{said}");
        assert!(said.ends_with("\r\n\r\nfound"), "{said}");
        let said = say(&path, b"HEAD /there HTTP/1.0\r\n\r\n").await;
        assert!(said.ends_with("\r\n\r\n"), "{said}");
        let said = say(&path, b"GET /elsewhere HTTP/1.1\r\n\r\n").await;
        assert!(said.starts_with("HTTP/1.1 404 "), "{said}");
    }

    #[tokio::test]
    async fn what_is_no_request_is_refused() {
        let (_dir, path) = socket();
        let said = say(&path, b"\0\0\r\n\r\n").await;
        assert!(said.starts_with("HTTP/1.1 400 "), "{said}");
        let said = say(&path, b"POST /there HTTP/1.1\r\n\r\n").await;
        assert!(said.starts_with("HTTP/1.1 405 "), "{said}");
        let mut long = b"GET /there HTTP/1.1\r\nX: ".to_vec();
        long.resize(MAX_HEAD, b'x');
        let said = say(&path, &long).await;
        assert!(said.starts_with("HTTP/1.1 431 "), "{said}");
    }

    #[tokio::test(start_paused = true)]
    async fn callers_that_hang_do_not_keep_others_out_for_ever() {
        let (_dir, path) = socket();
        let mut hanging = Vec::new();
        for _ in 0..CONNECTIONS {
            hanging.push(UnixStream::connect(&path).await.unwrap());
        }
        let said = say(&path, b"GET /there HTTP/1.1\r\n\r\n").await;
        assert!(said.ends_with("found"), "{said}");
    }
}
