//! What containerd says to `start`, and the answer in the form that it understands.
//!
//! | containerd | says | understands |
//! | --- | --- | --- |
//! | 1.6 | – | the bare address |
//! | 1.7 to 2.2 | `MAX_SHIM_VERSION`, options on stdin | JSON, up to that version |
//! | 2.3 and later | `BootstrapParams` on stdin | `BootstrapResult` |
//!
//! Version 3 promises Task v3 and the Sandbox API. Both are served in any case,
//! Task v2 beside them, so a lower version loses nothing.

use containerd_shim_protos::bootstrap_api::{BootstrapParams, BootstrapResult};
use protobuf::Message;
use protobuf::well_known_types::any::Any;
use serde_json::json;

use crate::cli::Cli;

/// The newest version of shims that there is.
const NEWEST: i32 = 3;

/// Log levels of `BootstrapParams` from this one down are verbose.
const LOG_LEVEL_DEBUG: i32 = -4;

/// What the shim speaks.
const PROTOCOL: &str = "ttrpc";

/// What containerd wants of `start`.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Request {
    /// Where events go.
    pub(crate) ttrpc_address: String,
    /// Where sockets are made; `None`: the usual place.
    pub(crate) socket_dir: Option<String>,
    /// Options of the runtime, of whatever type.
    pub(crate) options: Vec<Any>,
    pub(crate) debug: bool,
    pub(crate) form: Form,
}

/// The form of an answer.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) enum Form {
    /// Nothing but the address.
    #[default]
    Address,
    /// JSON of this version.
    Json(i32),
    /// The protobuf message.
    Message,
}

/// The environment variables that matter.
#[derive(Clone, Debug, Default)]
pub(crate) struct Environment {
    /// `TTRPC_ADDRESS`.
    pub(crate) ttrpc_address: Option<String>,
    /// `MAX_SHIM_VERSION`.
    pub(crate) max_version: Option<String>,
}

impl Request {
    /// Puts together what the command line, the environment and stdin say.
    pub(crate) fn read(cli: &Cli, environment: Environment, stdin: &[u8]) -> Self {
        let max = environment.max_version.and_then(|max| max.parse().ok());
        let old = Self {
            ttrpc_address: environment.ttrpc_address.unwrap_or_default(),
            debug: cli.debug,
            form: match max {
                Some(max @ 2..) => Form::Json(NEWEST.min(max)),
                _ => Form::Address,
            },
            ..Self::default()
        };
        match params(cli, stdin) {
            Some(params) => Self {
                ttrpc_address: match params.containerd_ttrpc_address {
                    address if address.is_empty() => old.ttrpc_address,
                    address => address,
                },
                socket_dir: params.socket_dir.filter(|dir| !dir.is_empty()),
                options: params
                    .extensions
                    .into_iter()
                    .filter_map(|extension| extension.value.into_option())
                    .collect(),
                debug: old.debug || params.log_level.value() <= LOG_LEVEL_DEBUG,
                form: Form::Message,
            },
            None => Self {
                options: options(stdin).into_iter().collect(),
                ..old
            },
        }
    }
}

/// `BootstrapParams`, when stdin holds them. Other messages can be read as such
/// by chance, so they must agree with the command line.
fn params(cli: &Cli, stdin: &[u8]) -> Option<BootstrapParams> {
    let params = BootstrapParams::parse_from_bytes(stdin).ok()?;
    (params.instance_id == cli.id && params.namespace == cli.namespace).then_some(params)
}

fn options(stdin: &[u8]) -> Option<Any> {
    let any = Any::parse_from_bytes(stdin).ok()?;
    (!any.type_url.is_empty()).then_some(any)
}

impl Form {
    /// The answer: a shim serves at `address`.
    pub(crate) fn answer(self, address: &str) -> Vec<u8> {
        match self {
            Self::Address => address.as_bytes().to_vec(),
            Self::Json(version) => {
                json!({ "version": version, "address": address, "protocol": PROTOCOL })
                    .to_string()
                    .into_bytes()
            }
            Self::Message => {
                let result = BootstrapResult {
                    version: NEWEST,
                    address: address.to_owned(),
                    protocol: PROTOCOL.to_owned(),
                    ..Default::default()
                };
                // Text of bounded length can always be encoded.
                result.write_to_bytes().unwrap_or_default()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use containerd_shim_protos::bootstrap_api::Extension;

    use super::*;
    use crate::cli::Action;

    fn cli() -> Cli {
        Cli {
            action: Action::Start,
            namespace: "ns".into(),
            id: "c1".into(),
            address: "/run/containerd/containerd.sock".into(),
            bundle: None,
            debug: false,
        }
    }

    fn environment(max_version: Option<&str>) -> Environment {
        Environment {
            ttrpc_address: Some("/run/ttrpc".into()),
            max_version: max_version.map(str::to_owned),
        }
    }

    fn any(type_url: &str) -> Any {
        Any {
            type_url: type_url.into(),
            ..Default::default()
        }
    }

    #[test]
    fn containerd_1_6_gets_the_bare_address() {
        let request = Request::read(&cli(), environment(None), b"");
        assert_eq!(request.form, Form::Address);
        assert_eq!(request.ttrpc_address, "/run/ttrpc");
        assert_eq!(request.form.answer("unix:///s"), b"unix:///s");
    }

    #[test]
    fn containerd_1_7_gets_json_of_the_version_it_knows() {
        let options = any("runtimeoptions.v1.Options");
        let stdin = options.write_to_bytes().unwrap();
        let request = Request::read(&cli(), environment(Some("2")), &stdin);
        assert_eq!(request.form, Form::Json(2));
        assert_eq!(request.options, [options]);
        let answer: serde_json::Value =
            serde_json::from_slice(&request.form.answer("unix:///s")).unwrap();
        assert_eq!(
            answer,
            json!({ "version": 2, "address": "unix:///s", "protocol": "ttrpc" })
        );
        let newer = Request::read(&cli(), environment(Some("9")), b"");
        assert_eq!(newer.form, Form::Json(3));
    }

    #[test]
    fn containerd_2_3_gets_the_message() {
        let mut params = BootstrapParams {
            instance_id: "c1".into(),
            namespace: "ns".into(),
            containerd_ttrpc_address: "/run/other".into(),
            extensions: vec![Extension {
                value: Some(any("x")).into(),
                ..Default::default()
            }],
            socket_dir: Some("/run/s".into()),
            ..Default::default()
        };
        params.log_level = protobuf::EnumOrUnknown::from_i32(-4);
        let stdin = params.write_to_bytes().unwrap();
        let request = Request::read(&cli(), environment(Some("2")), &stdin);
        assert_eq!(request.form, Form::Message);
        assert_eq!(request.ttrpc_address, "/run/other");
        assert_eq!(request.socket_dir.as_deref(), Some("/run/s"));
        assert_eq!(request.options, [any("x")]);
        assert!(request.debug);
        let answer = BootstrapResult::parse_from_bytes(&request.form.answer("unix:///s")).unwrap();
        assert_eq!((answer.version, answer.address.as_str()), (3, "unix:///s"));
        assert_eq!(answer.protocol, "ttrpc");
    }

    #[test]
    fn parameters_of_another_container_are_none() {
        let params = BootstrapParams {
            instance_id: "other".into(),
            namespace: "ns".into(),
            ..Default::default()
        };
        let stdin = params.write_to_bytes().unwrap();
        let request = Request::read(&cli(), environment(Some("2")), &stdin);
        assert_eq!(request.form, Form::Json(2));
    }
}
