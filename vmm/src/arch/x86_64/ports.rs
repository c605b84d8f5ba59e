//! The two things left of a PC's I/O ports: a serial port that only takes
//! bytes, for the kernel's early console, and the keyboard controller's reset.

use std::sync::Mutex;

use crate::console::Console;

const SERIAL_DATA: u16 = 0x3f8;
const SERIAL_LINE_STATUS: u16 = 0x3fd;
/// Transmitter empty and ready: a byte can always be written.
const LINE_STATUS_READY: u8 = 0x60;
const KEYBOARD_STATUS: u16 = 0x64;
const KEYBOARD_RESET: u8 = 0xfe;

/// What a write to a port asks of the machine.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum PortEffect {
    /// Nothing.
    None,
    /// To be reset.
    Reset,
}

/// A vCPU writes `data` to `port`.
pub fn write(console: &Mutex<Console>, port: u16, data: &[u8]) -> PortEffect {
    match (port, data) {
        (SERIAL_DATA, [byte]) => {
            if let Ok(mut console) = console.lock() {
                console.push(*byte);
            }
            PortEffect::None
        }
        (KEYBOARD_STATUS, [KEYBOARD_RESET]) => PortEffect::Reset,
        _ => PortEffect::None,
    }
}

/// A vCPU reads `data.len()` bytes from `port`.
pub fn read(port: u16, data: &mut [u8]) {
    let value = match port {
        SERIAL_LINE_STATUS => LINE_STATUS_READY,
        // Ready for a command, nothing to read.
        KEYBOARD_STATUS => 0,
        // Where nothing answers, the bus floats high.
        _ => 0xff,
    };
    data.fill(value);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn serial_bytes_reach_the_console_and_a_reset_is_seen() {
        let console = Mutex::new(Console::new(false));
        for byte in b"hi" {
            assert_eq!(write(&console, SERIAL_DATA, &[*byte]), PortEffect::None);
        }
        assert_eq!(console.lock().unwrap().tail(), "hi");
        assert_eq!(write(&console, KEYBOARD_STATUS, &[0xfe]), PortEffect::Reset);
        assert_eq!(
            write(&console, KEYBOARD_STATUS, &[0xfe, 0]),
            PortEffect::None
        );
    }

    #[test]
    fn a_port_without_a_device_reads_as_ones() {
        let mut data = [0; 4];
        read(0xcf8, &mut data);
        assert_eq!(data, [0xff; 4]);
    }
}
