//! The files that CRI has its runtime make for a pod.
//!
//! For a pod with a pause container, containerd writes them into a directory of its own and
//! mounts them into each container. For a pod of the Sandbox API it leaves that to the shim.

use std::fs::File;
use std::io::{self, Read};

use nacre_pod::spec::PodFile;

use crate::failure::Failure;
use crate::wire::Fields;

const SERVERS: u32 = 1;
const SEARCHES: u32 = 2;
const OPTIONS: u32 = 3;

/// Bytes of a file of the host that is copied; as many as a guest takes.
const MAX_FILE: usize = 1 << 20;

/// What is in a pod's files, besides its name.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct SandboxFiles {
    pub(crate) resolv_conf: String,
    pub(crate) hosts: String,
}

impl SandboxFiles {
    /// Makes them as containerd does: `resolv.conf` out of CRI's `DNSConfig` or else as the
    /// host's, and `hosts` as the host's.
    ///
    /// # Errors
    /// `InvalidArgument` for a configuration that is more than one word a place.
    pub(crate) fn new(dns: Option<&Fields>) -> Result<Self, Failure> {
        let resolv_conf = match dns {
            Some(dns) => resolv_conf(dns)?,
            None => of_host("/etc/resolv.conf"),
        };
        Ok(Self {
            resolv_conf,
            hosts: of_host("/etc/hosts"),
        })
    }

    /// Those that there are, in a pod of this name.
    pub(crate) fn list(&self, hostname: &str) -> Vec<PodFile> {
        let all = [
            (PodFile::ResolvConf, self.resolv_conf.as_str()),
            (PodFile::Hosts, self.hosts.as_str()),
            (PodFile::Hostname, hostname),
        ];
        let there = all.into_iter().filter(|(_, content)| !content.is_empty());
        there.map(|(file, _)| file).collect()
    }
}

/// resolv.conf(5) of a `DNSConfig`. One that says nothing is a file without a name server.
fn resolv_conf(dns: &Fields) -> Result<String, Failure> {
    let words = |field, name| words(dns, field, name);
    let servers = words(SERVERS, "servers")?;
    let mut text = String::new();
    for (keyword, words) in [
        ("search", words(SEARCHES, "searches")?),
        ("options", words(OPTIONS, "options")?),
    ] {
        if !words.is_empty() {
            text += &format!("{keyword} {}\n", words.join(" "));
        }
    }
    for server in servers {
        text += &format!("nameserver {server}\n");
    }
    if text.is_empty() {
        text.push('\n');
    }
    Ok(text)
}

/// A line's break would be another setting.
fn words<'a>(dns: &'a Fields, field: u32, name: &str) -> Result<Vec<&'a str>, Failure> {
    let words = dns.texts(field);
    let is_wrong = |word: &&str| word.is_empty() || word.contains(char::is_control);
    match words.iter().position(is_wrong) {
        None => Ok(words),
        Some(index) => Err(Failure::invalid_argument(format!(
            "dns_config.{name}[{index}]: must be a word of resolv.conf(5)"
        ))),
    }
}

/// A file of the host; empty when it cannot be had.
fn of_host(path: &str) -> String {
    read(path).unwrap_or_else(|error| {
        log::warn!("containers have no {path} of the pod's: {error}");
        String::new()
    })
}

fn read(path: &str) -> io::Result<String> {
    let mut text = String::new();
    let most = u64::try_from(MAX_FILE).unwrap_or(u64::MAX);
    let read = File::open(path)?
        .take(most.saturating_add(1))
        .read_to_string(&mut text)?;
    if read > MAX_FILE {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use protobuf::CodedOutputStream;

    use super::*;

    fn dns(fields: &[(u32, &str)]) -> Fields {
        let mut bytes = Vec::new();
        let mut stream = CodedOutputStream::vec(&mut bytes);
        for (number, text) in fields {
            stream.write_string(*number, text).unwrap();
        }
        stream.flush().unwrap();
        drop(stream);
        Fields::parse(&bytes)
    }

    #[test]
    fn a_resolver_hears_all_that_cri_says() {
        let dns = dns(&[
            (SERVERS, "10.96.0.10"),
            (SERVERS, "fd00::a"),
            (SEARCHES, "default.svc.cluster.local"),
            (SEARCHES, "svc.cluster.local"),
            (OPTIONS, "ndots:5"),
            (OPTIONS, "edns0"),
        ]);
        let files = SandboxFiles::new(Some(&dns)).unwrap();
        assert_eq!(
            files.resolv_conf,
            "search default.svc.cluster.local svc.cluster.local\noptions ndots:5 edns0\n\
             nameserver 10.96.0.10\nnameserver fd00::a\n"
        );
        let listed = files.list("web-0");
        assert!(listed.contains(&PodFile::ResolvConf) && listed.contains(&PodFile::Hostname));
        assert!(!files.list("").contains(&PodFile::Hostname));
    }

    #[test]
    fn a_configuration_that_says_nothing_is_not_the_hosts() {
        let files = SandboxFiles::new(Some(&Fields::default())).unwrap();
        assert_eq!(files.resolv_conf, "\n");
    }

    #[test]
    fn a_word_is_no_second_line() {
        for (field, name) in [
            (SERVERS, "servers"),
            (SEARCHES, "searches"),
            (OPTIONS, "options"),
        ] {
            for word in ["a\nnameserver 6.6.6.6", ""] {
                let failure = SandboxFiles::new(Some(&dns(&[(field, word)]))).unwrap_err();
                assert_eq!(failure.code, ttrpc::Code::INVALID_ARGUMENT);
                assert!(failure.message.contains(&format!("dns_config.{name}[0]")));
            }
        }
    }

    #[test]
    fn a_file_of_the_host_is_read_up_to_a_bound() {
        read("/dev/zero").unwrap_err();
        assert_eq!(of_host("/nowhere"), "");
    }
}
