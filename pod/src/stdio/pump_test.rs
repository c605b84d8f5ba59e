use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream as StdStream;
use std::thread;
use std::time::Instant;

use rustix::pipe::pipe;

use super::*;

/// A stream as a monitor would give it, and the guest's end of it.
fn stream() -> (UnixStream, StdStream) {
    let (ours, guest) = StdStream::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    (UnixStream::from_std(ours).unwrap(), guest)
}

fn pattern(length: usize) -> Vec<u8> {
    (0..length)
        .map(|n| u8::try_from(n * 31 % 251).unwrap())
        .collect()
}

#[tokio::test]
async fn all_output_arrives_at_a_slow_reader() {
    let (ours, mut guest) = stream();
    let (read, write) = pipe().unwrap();
    let mut pumps = Pumps::new();
    pumps.start_output("stdout", ours, write).unwrap();
    let sent = pattern(8 << 20);
    let expected = sent.clone();
    let writer = thread::spawn(move || guest.write_all(&sent).unwrap());
    let reader = thread::spawn(move || {
        let (mut read, mut all) = (File::from(read), Vec::new());
        let mut buffer = vec![0; 100_000];
        loop {
            let count = read.read(&mut buffer).unwrap();
            if count == 0 {
                return all;
            }
            all.extend_from_slice(&buffer[..count]);
            thread::sleep(Duration::from_micros(200));
        }
    });
    pumps.drain().await;
    writer.join().unwrap();
    assert!(pumps.first_output().at().is_some());
    drop(pumps);
    assert!(
        reader.join().unwrap() == expected,
        "bytes were lost or changed"
    );
}

#[tokio::test]
async fn a_reader_that_sleeps_stops_the_guest_and_costs_no_memory() {
    let (ours, guest) = stream();
    let (read, write) = pipe().unwrap();
    let mut pumps = Pumps::new();
    pumps.start_output("stdout", ours, write).unwrap();
    guest.set_nonblocking(true).unwrap();
    let mut taken = 0;
    let until = Instant::now() + Duration::from_millis(500);
    while Instant::now() < until {
        taken += (&guest).write(&[0; 4096]).unwrap_or(0);
        tokio::time::sleep(Duration::from_micros(100)).await;
    }
    assert!(taken > 0);
    assert!(
        taken < 2 << 20,
        "{taken} bytes were taken from the guest for a reader that sleeps"
    );
    drop(read);
}

#[tokio::test]
async fn the_end_of_stdin_is_a_half_close() {
    let (ours, guest) = stream();
    let (read, write) = pipe().unwrap();
    let mut pumps = Pumps::new();
    pumps.start_input(read, ours).unwrap();
    let sent = pattern(1 << 20);
    let expected = sent.clone();
    let writer = thread::spawn(move || File::from(write).write_all(&sent).unwrap());
    let (got, mut guest) = tokio::task::spawn_blocking(move || {
        let mut guest = guest;
        let mut got = Vec::new();
        guest.read_to_end(&mut got).unwrap();
        (got, guest)
    })
    .await
    .unwrap();
    writer.join().unwrap();
    assert!(got == expected, "bytes were lost or changed");
    drop(pumps);
    // The other direction was open until now, and ends without an error.
    assert_eq!(guest.read(&mut [0]).unwrap(), 0);
}

#[tokio::test]
async fn a_reader_that_leaves_is_told_to_the_guest() {
    let (ours, mut guest) = stream();
    let (read, write) = pipe().unwrap();
    drop(read);
    let mut pumps = Pumps::new();
    pumps.start_output("stdout", ours, write).unwrap();
    guest.write_all(b"x").unwrap();
    let error = tokio::task::spawn_blocking(move || {
        loop {
            if let Err(error) = guest.write_all(b"x") {
                return error;
            }
            thread::sleep(Duration::from_millis(1));
        }
    })
    .await
    .unwrap();
    assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    pumps.drain().await;
}

#[tokio::test]
async fn a_guest_that_leaves_ends_stdin() {
    let (ours, guest) = stream();
    let (read, write) = pipe().unwrap();
    drop(guest);
    let mut pumps = Pumps::new();
    pumps.start_input(read, ours).unwrap();
    File::from(write).write_all(b"for nobody").unwrap();
    pumps.drain().await;
    assert_eq!(pumps.first_output().at(), None);
}

#[tokio::test(start_paused = true)]
async fn output_that_never_ends_is_waited_for_only_so_long() {
    let (ours, _guest) = stream();
    let (_read, write) = pipe().unwrap();
    let mut pumps = Pumps::new();
    pumps.start_output("stdout", ours, write).unwrap();
    let before = tokio::time::Instant::now();
    pumps.drain().await;
    assert!(before.elapsed() >= STANDSTILL);
    assert!(before.elapsed() < STANDSTILL * 2);
}

/// Output without end, a chunk each time that so much has passed, of a container that ends after
/// `life`. Gives how long it was waited for then.
async fn drain_of(chunk: Vec<u8>, pause: Duration, life: Duration) -> Duration {
    let (ours, guest) = stream();
    guest.set_nonblocking(true).unwrap();
    let mut guest = UnixStream::from_std(guest).unwrap();
    let host = File::options().write(true).open("/dev/null").unwrap();
    let mut pumps = Pumps::new();
    pumps.start_output("stdout", ours, host.into()).unwrap();
    let writer = tokio::spawn(async move {
        while guest.write_all(&chunk).await.is_ok() {
            tokio::time::sleep(pause).await;
        }
    });
    tokio::time::sleep(life).await;
    let before = tokio::time::Instant::now();
    pumps.drain().await;
    let elapsed = before.elapsed();
    writer.abort();
    elapsed
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_trickles_has_one_deadline_for_all() {
    let pause = STANDSTILL - Duration::from_secs(1);
    let elapsed = drain_of(vec![0], pause, LAST_OUTPUT * 10).await;
    assert!(elapsed >= LAST_OUTPUT - STANDSTILL, "{elapsed:?}");
    assert!(elapsed <= LAST_OUTPUT + STANDSTILL, "{elapsed:?}");
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_floods_is_cut_off() {
    let elapsed = drain_of(vec![0; BUFFER], Duration::from_millis(1), Duration::ZERO).await;
    assert!(elapsed < STANDSTILL, "{elapsed:?}");
}

#[tokio::test(start_paused = true)]
async fn the_last_output_of_a_container_that_was_silent_arrives() {
    let (ours, mut guest) = stream();
    let (read, write) = pipe().unwrap();
    let mut pumps = Pumps::new();
    pumps.start_output("stdout", ours, write).unwrap();
    tokio::time::sleep(LAST_OUTPUT * 10).await;
    let last = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        guest.write_all(b"one").unwrap();
        tokio::time::sleep(Duration::from_secs(1)).await;
        guest.write_all(b"two").unwrap();
        drop(guest);
    };
    tokio::join!(pumps.drain(), last);
    drop(pumps);
    let mut all = String::new();
    File::from(read).read_to_string(&mut all).unwrap();
    assert_eq!(all, "onetwo");
}
