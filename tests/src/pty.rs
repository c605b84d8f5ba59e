//! A terminal with the test as the person before it.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize};

use crate::patience;

/// A command that has a terminal.
#[derive(Debug)]
pub struct Session {
    keyboard: File,
    /// The other side, to look at its modes.
    terminal: File,
    screen: Arc<Mutex<Vec<u8>>>,
    child: Child,
}

impl Session {
    /// Starts a program and its arguments in a session whose terminal is new.
    ///
    /// # Panics
    /// When that fails.
    #[must_use]
    pub fn start(words: &[&str], columns: u16, rows: u16) -> Self {
        let mut command = Command::new(words[0]);
        command.args(&words[1..]);
        Self::of(&command, columns, rows)
    }

    /// The same of a command and what it sets in its environment.
    ///
    /// # Panics
    /// When that fails.
    #[must_use]
    pub fn of(command: &Command, columns: u16, rows: u16) -> Self {
        let master =
            openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let name = ptsname(&master, Vec::new()).unwrap();
        let mut options = File::options();
        let terminal = options
            .read(true)
            .write(true)
            .open(name.to_str().unwrap())
            .unwrap();
        set_size(&master, columns, rows);
        let side = || Stdio::from(terminal.try_clone().unwrap());
        let environment = command.get_envs();
        let environment = environment.filter_map(|(name, value)| Some((name, value?)));
        let child = Command::new("setsid")
            .arg("--ctty")
            .arg(command.get_program())
            .args(command.get_args())
            .envs(environment)
            .stdin(side())
            .stdout(side())
            .stderr(side())
            .spawn()
            .expect("setsid of util-linux");
        let keyboard = File::from(master);
        let screen = Arc::<Mutex<Vec<u8>>>::default();
        let (shown, mut output) = (screen.clone(), keyboard.try_clone().unwrap());
        // It ends, with an error, when the last one who has the terminal is gone.
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(len @ 1..) = output.read(&mut buffer) {
                shown.lock().unwrap().extend_from_slice(&buffer[..len]);
            }
        });
        Self {
            keyboard,
            terminal,
            screen,
            child,
        }
    }

    /// All that was shown until now.
    #[must_use]
    pub fn screen(&self) -> String {
        String::from_utf8_lossy(&self.screen.lock().unwrap()).into_owned()
    }

    /// Waits until this was shown.
    ///
    /// # Panics
    /// When it was not, in time or before the end.
    pub fn wait_for(&mut self, text: &str) {
        let start = Instant::now();
        while !self.screen().contains(text) {
            let ended = self.child.try_wait().unwrap();
            assert!(
                ended.is_none() && start.elapsed() < patience(),
                "no {text:?} (ended: {ended:?}): {:?}",
                self.screen()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Presses keys.
    ///
    /// # Panics
    /// When nobody has the terminal any more.
    pub fn press(&mut self, keys: &[u8]) {
        self.keyboard.write_all(keys).unwrap();
    }

    /// Changes the size of the window.
    pub fn resize(&self, columns: u16, rows: u16) {
        set_size(&self.keyboard, columns, rows);
    }

    /// Whether keys are handed on as they are pressed, not echoed.
    ///
    /// # Panics
    /// Never while the session exists.
    #[must_use]
    pub fn is_raw(&self) -> bool {
        let modes = tcgetattr(&self.terminal).unwrap().local_modes;
        !modes.intersects(LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG)
    }

    /// Waits for the end.
    ///
    /// # Panics
    /// When it does not come in time.
    #[must_use]
    pub fn wait(&mut self) -> ExitStatus {
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(start.elapsed() < patience(), "no end: {:?}", self.screen());
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn set_size(terminal: &impl AsFd, columns: u16, rows: u16) {
    let size = Winsize {
        ws_row: rows,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    tcsetwinsize(terminal, size).unwrap();
}
