//! Connections of the host to TCP ports of the pod's localhost.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};

use tokio::net::TcpStream;

use crate::error::{Doing, Error};
use crate::transport::Socket;

/// Connects to whoever listens on `port`, of 127.0.0.1 or else of ::1.
pub(crate) async fn connect(port: u32) -> Result<TcpStream, Error> {
    let Some(port) = u16::try_from(port).ok().filter(|port| *port != 0) else {
        return Err(Error::InvalidArgument(format!(
            "port: {port} is not 1 to 65535"
        )));
    };
    let connected = match TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await {
        Ok(connection) => Ok(connection),
        Err(_nobody) => TcpStream::connect((Ipv6Addr::LOCALHOST, port)).await,
    };
    match connected {
        Err(error) if is_nobody(&error) => Err(Error::FailedPrecondition(format!(
            "nobody listens on port {port} of the pod's localhost"
        ))),
        other => other.doing("cannot connect to the pod's localhost"),
    }
}

/// Without IPv6 there is no address ::1.
fn is_nobody(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionRefused | io::ErrorKind::AddrNotAvailable
    ) || error.raw_os_error() == Some(libc::EAFNOSUPPORT)
}

/// Copies both ways between the host's stream and the connection until both have ended.
pub(crate) fn relay(mut stream: Socket, mut connection: TcpStream) {
    tokio::spawn(async move {
        if let Err(error) = tokio::io::copy_bidirectional(&mut stream, &mut connection).await {
            log::debug!("a connection to the pod's localhost: {error}");
        }
    });
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn whoever_listens_on_ipv4_or_ipv6_is_found() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let listener = TcpListener::bind(address).await.unwrap();
            let port = listener.local_addr().unwrap().port();
            let connection = connect(port.into()).await.unwrap();
            let (_, peer) = listener.accept().await.unwrap();
            assert_eq!(connection.local_addr().unwrap(), peer);
        }
    }

    #[tokio::test]
    async fn a_port_without_a_listener_is_refused_by_its_number() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        drop(listener);
        let error = connect(port.into()).await.unwrap_err();
        assert!(matches!(error, Error::FailedPrecondition(_)), "{error:?}");
        assert!(error.to_string().contains(&port.to_string()), "{error}");
    }

    #[tokio::test]
    async fn a_number_that_is_no_port_is_an_invalid_argument() {
        for port in [0, 65536, u32::MAX] {
            let error = connect(port).await.unwrap_err();
            assert!(matches!(error, Error::InvalidArgument(_)), "{error:?}");
        }
    }

    #[tokio::test]
    async fn one_direction_may_end_before_the_other() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (ours, host) = UnixStream::pair().unwrap();
        relay(
            Socket::new(ours.into()).unwrap(),
            connect(port.into()).await.unwrap(),
        );
        host.set_nonblocking(true).unwrap();
        let mut host = tokio::net::UnixStream::from_std(host).unwrap();
        host.write_all(b"question").await.unwrap();
        host.shutdown().await.unwrap();
        let (mut server, _) = listener.accept().await.unwrap();
        let mut asked = String::new();
        server.read_to_string(&mut asked).await.unwrap();
        server.write_all(b"answer").await.unwrap();
        drop(server);
        let mut answered = String::new();
        host.read_to_string(&mut answered).await.unwrap();
        assert_eq!((asked.as_str(), answered.as_str()), ("question", "answer"));
    }
}
