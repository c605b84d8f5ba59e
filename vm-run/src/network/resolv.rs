//! The `resolv.conf` of a pod.

use std::net::IpAddr;

use nacre_cni::Dns;

/// What the resolver of a C library reads (resolv.conf(5)): what the network says, with
/// `servers` in place of its name servers if there are any. Empty when there is nothing
/// to say.
pub(super) fn conf(dns: &Dns, servers: &[IpAddr]) -> String {
    let servers = if servers.is_empty() {
        &dns.nameservers
    } else {
        servers
    };
    // The last of `domain` and `search` counts, and the domain is what is searched first.
    let search: Vec<&str> = dns
        .domain
        .iter()
        .chain(&dns.search)
        .map(String::as_str)
        .collect();
    let options: Vec<&str> = dns.options.iter().map(String::as_str).collect();
    let mut text = String::new();
    for (keyword, words) in [("search", search), ("options", options)] {
        if !words.is_empty() {
            text += &format!("{keyword} {}\n", words.join(" "));
        }
    }
    for server in servers {
        text += &format!("nameserver {server}\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dns() -> Dns {
        Dns {
            nameservers: vec!["10.10.0.1".parse().unwrap(), "fd00::1".parse().unwrap()],
            domain: Some("example.org".into()),
            search: vec!["a.example.org".into()],
            options: vec!["ndots:5".into()],
        }
    }

    #[test]
    fn it_says_what_the_network_says() {
        assert_eq!(
            conf(&dns(), &[]),
            "search example.org a.example.org\noptions ndots:5\n\
             nameserver 10.10.0.1\nnameserver fd00::1\n"
        );
        assert_eq!(conf(&Dns::default(), &[]), "");
    }

    #[test]
    fn the_command_lines_servers_take_the_place_of_the_networks() {
        let servers = ["9.9.9.9".parse().unwrap()];
        assert_eq!(conf(&Dns::default(), &servers), "nameserver 9.9.9.9\n");
        let text = conf(&dns(), &servers);
        assert!(text.ends_with("ndots:5\nnameserver 9.9.9.9\n"), "{text}");
    }
}
