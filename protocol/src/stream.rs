//! How a stdio stream begins.
//!
//! The host connects to [`STREAM_PORT`](crate::STREAM_PORT), sends one
//! [`StreamHeader`] of [`HEADER_LEN`] bytes, and from then on the connection
//! carries raw bytes: to the process for stdin, from it for stdout and stderr.
//! The end of one direction is a half-close (`shutdown(SHUT_WR)`). A request
//! names the stream by its identifier, so streams are opened first.

use thiserror::Error;

/// Length of an encoded [`StreamHeader`] in bytes.
pub const HEADER_LEN: usize = 16;

const MAGIC: [u8; 8] = *b"NACRESTR";

/// First bytes of a stream: which one it is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct StreamHeader {
    /// Identifier chosen by the host, unique in the pod's life and never 0.
    pub id: u64,
}

/// Why bytes are no [`StreamHeader`].
#[derive(Debug, Error, Eq, PartialEq)]
pub enum HeaderError {
    /// The connection does not begin with the stream magic.
    #[error("not a Nacre stream: the header has a wrong magic")]
    Magic,
    /// The identifier 0 means "no stream" in requests.
    #[error("stream identifier 0 is reserved")]
    ReservedId,
}

impl StreamHeader {
    /// The bytes to send.
    #[must_use]
    pub fn encode(self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..].copy_from_slice(&self.id.to_le_bytes());
        bytes
    }

    /// Reads what [`encode`](Self::encode) wrote.
    ///
    /// # Errors
    /// [`HeaderError`] when the magic or the identifier is not one of a stream.
    pub fn decode(bytes: [u8; HEADER_LEN]) -> Result<Self, HeaderError> {
        let (magic, id) = bytes.split_at(8);
        if magic != MAGIC {
            return Err(HeaderError::Magic);
        }
        let id = id
            .iter()
            .rev()
            .fold(0, |id, byte| id << 8 | u64::from(*byte));
        if id == 0 {
            return Err(HeaderError::ReservedId);
        }
        Ok(Self { id })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_is_read_back_as_it_was_written() {
        for id in [1, 0x0102_0304_0506_0708, u64::MAX] {
            let header = StreamHeader { id };
            assert_eq!(StreamHeader::decode(header.encode()), Ok(header));
        }
    }

    #[test]
    fn foreign_bytes_and_the_reserved_identifier_are_refused() {
        assert_eq!(
            StreamHeader::decode([0x41; HEADER_LEN]),
            Err(HeaderError::Magic)
        );
        assert_eq!(
            StreamHeader::decode(StreamHeader { id: 0 }.encode()),
            Err(HeaderError::ReservedId)
        );
    }
}
