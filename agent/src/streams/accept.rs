//! Accepts streams and reads their headers.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use nacre_protocol::stream::{HEADER_LEN, StreamHeader};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};

use super::table::{EXPIRE_EVERY, StreamTable};
use crate::transport::{Listener, Socket};

/// Connections that may be without a complete header at a time.
const HEADERLESS: usize = 64;

/// How long a connection may take to send its header.
const HEADER_TIME: Duration = Duration::from_secs(30);

/// Pause after a failed accept, so that a lack of descriptors is no busy loop.
const RETRY: Duration = Duration::from_millis(100);

/// Puts each stream that the host opens into `table`, for ever.
pub(crate) async fn accept_streams(listener: Listener, table: Arc<StreamTable>) {
    let headerless = Arc::new(Semaphore::new(HEADERLESS));
    loop {
        let Ok(permit) = headerless.clone().acquire_owned().await else {
            return;
        };
        let socket = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok(socket) => socket,
                Err(error) => {
                    log::error!("cannot accept a stream: {error}");
                    sleep(RETRY).await;
                    continue;
                }
            },
            () = sleep(EXPIRE_EVERY), if !table.is_empty() => {
                table.expire();
                continue;
            }
        };
        let table = table.clone();
        tokio::spawn(async move {
            if let Err(error) = admit(socket, &table).await {
                log::warn!("dropped a stream: {error}");
            }
            drop(permit);
        });
    }
}

async fn admit(socket: Socket, table: &StreamTable) -> io::Result<()> {
    let header = timeout(HEADER_TIME, read_header(&socket)).await??;
    table
        .insert(header.id, socket)
        .map_err(|error| io::Error::other(error.to_string()))
}

async fn read_header(socket: &Socket) -> io::Result<StreamHeader> {
    let mut header = [0; HEADER_LEN];
    let mut filled = 0;
    while filled < HEADER_LEN {
        match socket.receive(&mut header[filled..]).await? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            count => filled += count,
        }
    }
    StreamHeader::decode(header).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::net::UnixStream;

    use super::*;

    fn pair() -> (Socket, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (Socket::new(ours.into()).unwrap(), theirs)
    }

    #[tokio::test]
    async fn a_header_may_come_in_pieces_and_takes_no_byte_of_the_stream() {
        let (socket, mut host) = pair();
        let header = StreamHeader { id: 9 }.encode();
        let host = std::thread::spawn(move || {
            host.write_all(&header[..5]).unwrap();
            std::thread::sleep(Duration::from_millis(20));
            host.write_all(&header[5..]).unwrap();
            host.write_all(b"data").unwrap();
        });
        assert_eq!(read_header(&socket).await.unwrap().id, 9);
        host.join().unwrap();
        let mut rest = [0; 16];
        let count = socket.receive(&mut rest).await.unwrap();
        assert_eq!(&rest[..count], b"data");
    }

    #[tokio::test]
    async fn a_connection_without_a_header_is_refused() {
        let (socket, mut host) = pair();
        host.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
        read_header(&socket).await.unwrap_err();
        let (socket, mut host) = pair();
        host.write_all(b"NACRE").unwrap();
        drop(host);
        read_header(&socket).await.unwrap_err();
    }
}
