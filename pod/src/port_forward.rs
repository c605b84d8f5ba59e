//! Carries connections to the localhost of a pod's network namespace to the guest's localhost.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::Semaphore;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::sleep;

use crate::network::Localhost;
use crate::pod::PodError;

/// Connections of one pod at a time; further ones wait to be accepted.
const CONNECTIONS: usize = 256;

/// Pause after a failed accept, so that a lack of descriptors is no busy loop.
const RETRY: Duration = Duration::from_millis(100);

/// A pod whose localhost can be reached. Dropping it cuts all connections.
#[derive(Debug)]
pub struct PortForward {
    task: AbortHandle,
}

impl PortForward {
    /// Accepts what `localhost` hears; `connect` connects with a port of the guest's localhost.
    ///
    /// # Errors
    /// When the runtime cannot poll the listener.
    pub fn start<C, F>(localhost: Localhost, connect: C) -> io::Result<Self>
    where
        C: Fn(u16) -> F + Clone + Send + 'static,
        F: Future<Output = Result<UnixStream, PodError>> + Send + 'static,
    {
        let listener = TcpListener::from_std(localhost.listener)?;
        let steering = localhost.steering;
        let task = tokio::spawn(async move {
            accept(listener, connect).await;
            drop(steering);
        });
        Ok(Self {
            task: task.abort_handle(),
        })
    }
}

impl Drop for PortForward {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Serves each connection, for ever.
async fn accept<C, F>(listener: TcpListener, connect: C)
where
    C: Fn(u16) -> F + Clone + Send + 'static,
    F: Future<Output = Result<UnixStream, PodError>> + Send + 'static,
{
    let free = Arc::new(Semaphore::new(CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        let Ok(place) = free.clone().acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok((client, _)) => {
                let connect = connect.clone();
                connections.spawn(async move {
                    if let Err(error) = serve(client, connect).await {
                        log::debug!("a connection to the pod's localhost: {error}");
                    }
                    drop(place);
                });
            }
            Err(error) => {
                log::warn!("cannot accept a connection to the pod's localhost: {error}");
                sleep(RETRY).await;
            }
        }
        while connections.try_join_next().is_some() {}
    }
}

async fn serve<C, F>(mut client: TcpStream, connect: C) -> io::Result<()>
where
    C: Fn(u16) -> F,
    F: Future<Output = Result<UnixStream, PodError>>,
{
    let called = client.local_addr()?;
    if !is_localhost(called.ip()) {
        return client.set_zero_linger();
    }
    match connect(called.port()).await {
        Ok(mut guest) => copy_bidirectional(&mut client, &mut guest).await.map(drop),
        Err(error) => {
            log::info!(
                "no connection to port {} of the pod: {error}",
                called.port()
            );
            // The caller sees a reset, as near to a refusal as an accepted connection gets.
            client.set_zero_linger()
        }
    }
}

/// The pod's own address is the guest's: what was meant for it does not belong here.
fn is_localhost(address: IpAddr) -> bool {
    address.to_canonical().is_loopback()
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::agent::AgentError;

    async fn listener() -> (TcpListener, std::net::SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        (listener, address)
    }

    #[tokio::test]
    async fn a_connection_is_carried_both_ways_to_the_port_that_was_called() {
        let (listener, address) = listener().await;
        let (wanted, mut asked) = tokio::sync::mpsc::channel(1);
        let connect = move |port| {
            let wanted = wanted.clone();
            async move {
                let (ours, guest) = UnixStream::pair().unwrap();
                wanted.send((port, guest)).await.unwrap();
                Ok(ours)
            }
        };
        tokio::spawn(accept(listener, connect));
        let mut client = TcpStream::connect(address).await.unwrap();
        client.write_all(b"question").await.unwrap();
        client.shutdown().await.unwrap();
        let (port, mut guest) = asked.recv().await.unwrap();
        assert_eq!(port, address.port());
        let mut text = String::new();
        guest.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "question");
        guest.write_all(b"answer").await.unwrap();
        drop(guest);
        text.clear();
        client.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "answer");
    }

    #[tokio::test]
    async fn a_guest_that_does_not_listen_resets_the_connection() {
        let (listener, address) = listener().await;
        let connect = |_| async {
            let nobody = AgentError::FailedPrecondition("nobody listens".into());
            Err(PodError::Agent(nobody))
        };
        tokio::spawn(accept(listener, connect));
        let mut client = TcpStream::connect(address).await.unwrap();
        let error = client.read_u8().await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    }

    #[test]
    fn only_localhost_is_localhost() {
        for (address, expected) in [
            ("127.0.0.1", true),
            ("127.1.2.3", true),
            ("::1", true),
            ("::ffff:127.0.0.1", true),
            ("10.0.0.2", false),
            ("::ffff:10.0.0.2", false),
            ("fd00::2", false),
        ] {
            assert_eq!(
                is_localhost(address.parse().unwrap()),
                expected,
                "{address}"
            );
        }
    }
}
