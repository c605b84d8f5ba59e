//! Fields of protobuf messages whose types come with no crate.
//!
//! containerd hands over messages of CRI's and of its own runtime options. Few
//! fields of them matter here, so they are looked up by their numbers.

use std::collections::HashMap;

use protobuf::well_known_types::any::Any;
use protobuf::well_known_types::empty::Empty;
use protobuf::{Message, UnknownValueRef};

/// A message of which only the numbers of its fields are known.
#[derive(Clone, Debug, Default)]
pub(crate) struct Fields(Empty);

impl Fields {
    /// Reads a message; one that is none has no fields.
    pub(crate) fn parse(bytes: &[u8]) -> Self {
        Self(Empty::parse_from_bytes(bytes).unwrap_or_default())
    }

    /// Reads `any` if it is of the type `name`.
    pub(crate) fn of(any: &Any, name: &str) -> Option<Self> {
        // With or without "type.googleapis.com/".
        let type_name = any.type_url.rsplit('/').next()?;
        (type_name == name).then(|| Self::parse(&any.value))
    }

    /// The message in the field `number`, empty if there is none.
    pub(crate) fn message(&self, number: u32) -> Self {
        self.bytes(number).map_or_else(Self::default, Self::parse)
    }

    /// Whether the field `number` is there and not a number.
    pub(crate) fn has(&self, number: u32) -> bool {
        self.bytes(number).is_some()
    }

    /// The texts in the field `number`, in their order.
    pub(crate) fn texts(&self, number: u32) -> Vec<&str> {
        let fields = self.0.special_fields.unknown_fields().iter();
        fields
            .filter_map(|(field, value)| match value {
                UnknownValueRef::LengthDelimited(text) if field == number => {
                    Some(std::str::from_utf8(text).unwrap_or_default())
                }
                _ => None,
            })
            .collect()
    }

    /// The map of texts in the field `number`.
    pub(crate) fn map(&self, number: u32) -> HashMap<String, String> {
        let fields = self.0.special_fields.unknown_fields().iter();
        fields
            .filter_map(|(field, value)| match value {
                UnknownValueRef::LengthDelimited(entry) if field == number => {
                    let entry = Self::parse(entry);
                    Some((entry.text(1).to_owned(), entry.text(2).to_owned()))
                }
                _ => None,
            })
            .collect()
    }

    /// The text in the field `number`, empty if there is none.
    pub(crate) fn text(&self, number: u32) -> &str {
        let bytes = self.bytes(number).unwrap_or_default();
        std::str::from_utf8(bytes).unwrap_or_default()
    }

    /// The number in the field `number`, 0 if there is none.
    pub(crate) fn number(&self, number: u32) -> i64 {
        match self.0.special_fields.unknown_fields().get(number) {
            // Negative numbers are written as their two's complement.
            Some(UnknownValueRef::Varint(value)) => value.cast_signed(),
            _ => 0,
        }
    }

    fn bytes(&self, number: u32) -> Option<&[u8]> {
        match self.0.special_fields.unknown_fields().get(number) {
            Some(UnknownValueRef::LengthDelimited(bytes)) => Some(bytes),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use containerd_shim_protos::api::{KillRequest, StateRequest};
    use containerd_shim_protos::bootstrap_api::{BootstrapParams, BootstrapResult};

    use super::*;

    #[test]
    fn fields_are_found_by_their_numbers() {
        let kill = KillRequest {
            id: "abc".into(),
            signal: 9,
            ..Default::default()
        };
        let fields = Fields::parse(&kill.write_to_bytes().unwrap());
        assert_eq!(fields.text(1), "abc");
        assert_eq!(fields.number(3), 9);
        assert_eq!((fields.text(2), fields.number(4)), ("", 0));
    }

    #[test]
    fn any_is_read_only_as_what_it_is() {
        let state = StateRequest {
            id: "x".into(),
            ..Default::default()
        };
        let any = Any {
            type_url: "type.googleapis.com/a.b".into(),
            value: state.write_to_bytes().unwrap(),
            ..Default::default()
        };
        assert_eq!(Fields::of(&any, "a.b").unwrap().text(1), "x");
        assert!(Fields::of(&any, "b").is_none());
    }

    #[test]
    fn messages_and_maps_are_nested() {
        let params = BootstrapParams {
            instance_id: "i".into(),
            ..Default::default()
        };
        let inner = params.write_to_bytes().unwrap();
        let mut outer = vec![0x12, u8::try_from(inner.len()).unwrap()];
        outer.extend(inner);
        let outer = Fields::parse(&outer);
        assert_eq!(outer.message(2).text(1), "i");
        assert_eq!(outer.message(9).text(1), "");

        let result = BootstrapResult {
            metadata: [("a", "1"), ("b", "2")]
                .map(|(key, value)| (key.to_owned(), value.to_owned()))
                .into(),
            ..Default::default()
        };
        let fields = Fields::parse(&result.write_to_bytes().unwrap());
        assert_eq!(fields.map(5), result.metadata);
        assert!(fields.map(4).is_empty());
    }

    #[test]
    fn garbage_has_no_fields() {
        assert_eq!(Fields::parse(b"{not protobuf}").text(1), "");
    }
}
