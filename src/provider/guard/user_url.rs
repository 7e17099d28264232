//! Base URLs that users type: the form that one must have to be called at all.
//!
//! A text is parsed once, and what was parsed is what is called. What parsers are known to disagree on is refused before
//! it is parsed.

use url::{Host, Url};

/// The longest base URL, in bytes: what browsers and servers agree on.
const LEN_MAX: usize = 2_000;

/// The longest name, and the longest part between two dots, in bytes (RFC 1035, section 2.3.4).
const NAME_LEN_MAX: usize = 253;
const LABEL_LEN_MAX: usize = 63;

/// Below this, ports belong to protocols; HTTP has two of them.
const FREE_PORTS: u16 = 1024;

/// Ports above that at which something else than HTTP listens by custom, and could take a request for its own: those that
/// browsers refuse (the Fetch standard, "port blocking"), then databases, queues and what manages machines.
const REFUSED_PORTS: [u16; 47] = [
    1719, 1720, 1723, 2049, 3659, 4045, 4190, 5060, 5061, 6000, 6566, 6665, 6666, 6667, 6668, 6669,
    6679, 6697, 10080, //
    1433, 1521, 2375, 2376, 2379, 2380, 3306, 3389, 5432, 5433, 5671, 5672, 5900, 5984, 6379, 6432,
    6443, 6543, 9042, 9092, 9200, 9300, 10250, 11211, 26379, 27017, 27018, 27019,
];

/// A base URL in a form that may be called. Whether its host may be is asked at each call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct UserUrl(Url);

impl UserUrl {
    /// Reads what a user typed: an http or https address of at most 2,000 bytes, http only if `allows_http`.
    ///
    /// # Errors
    /// What is wrong with it, as the rest of a sentence that begins with the field's name.
    pub(super) fn parse(text: &str, allows_http: bool) -> Result<Self, &'static str> {
        let text = text.trim();
        if text.len() > LEN_MAX {
            return Err("must have at most 2000 bytes");
        }
        if text.chars().any(|c| c.is_control() || c.is_whitespace() || c == '\\') {
            return Err("must have no spaces, backslashes or control characters");
        }
        let begins_with =
            |scheme: &str| text.get(..scheme.len()).is_some_and(|s| s.eq_ignore_ascii_case(scheme));
        let is_web = begins_with("https://") || (allows_http && begins_with("http://"));
        if !is_web {
            return Err("must begin with https://");
        }
        let url = Url::parse(text).map_err(|_| "must be an https address")?;
        if !url.username().is_empty() || url.password().is_some() {
            return Err("must have no user name or password");
        }
        if url.query().is_some() || url.fragment().is_some() {
            return Err("must have no `?` or `#`: it goes up to and without `/chat/completions`");
        }
        if !url.host().is_some_and(|host| is_possible(&host)) {
            return Err("must have a host name as in the DNS, or an address");
        }
        if !url.port_or_known_default().is_some_and(|port| is_http_port(port, url.scheme())) {
            return Err(
                "must have a port of a web server: 443, or one from 1024 up that belongs to no other protocol",
            );
        }
        Ok(Self(url))
    }

    /// The same with the path of OpenAI's chat completions behind its own.
    pub(in crate::provider) fn chat_completions(&self) -> Self {
        Self(crate::provider::chat_completions(&self.0))
    }

    pub(super) fn url(&self) -> &Url {
        &self.0
    }
}

fn is_possible(host: &Host<&str>) -> bool {
    let Host::Domain(name) = host else { return true };
    // A dot at the end would make it another name in comparisons, and the same in the DNS.
    name.len() <= NAME_LEN_MAX
        && name.split('.').all(|label| (1..=LABEL_LEN_MAX).contains(&label.len()))
}

fn is_http_port(port: u16, scheme: &str) -> bool {
    match port {
        80 => scheme == "http",
        443 => true,
        port => port >= FREE_PORTS && !REFUSED_PORTS.contains(&port),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn reads(text: &str, expected: &str) {
        let url = UserUrl::parse(text, true).map(|url| url.0.to_string());
        assert_eq!(url.as_deref(), Ok(expected), "{text}");
    }

    #[track_caller]
    fn refuses(texts: &[&str], word: &str) {
        for text in texts {
            let fault = UserUrl::parse(text, true).expect_err(text);
            assert!(fault.contains(word), "{text}: {fault}");
        }
    }

    #[test]
    fn honest_addresses_are_read() {
        reads("https://api.example.com/v1", "https://api.example.com/v1");
        reads(" HTTPS://API.Example.com:8443/v1/\n", "https://api.example.com:8443/v1/");
        reads("https://bücher.example", "https://xn--bcher-kva.example/");
        reads("https://1.1.1.1:443/v1", "https://1.1.1.1/v1");
        reads("https://[2606:4700::1111]/", "https://[2606:4700::1111]/");
        reads("http://llm.lan/v1", "http://llm.lan/v1");
        reads("https://a.example/x/../../v1", "https://a.example/v1");
        for port in [443, 1024, 8000, 8080, 8443, 11434, 32768, 65535] {
            assert!(UserUrl::parse(&format!("https://a.example:{port}"), false).is_ok(), "{port}");
        }
    }

    #[test]
    fn http_is_only_where_something_is_allowed() {
        assert_eq!(UserUrl::parse("http://a.example", false), Err("must begin with https://"));
        assert!(UserUrl::parse("https://a.example", false).is_ok());
    }

    #[test]
    fn other_schemes_and_what_only_browsers_take_for_one_are_refused() {
        let others = ["", "x", "file:///etc/passwd", "gopher://a.example", "data:text/plain,a"];
        refuses(&others, "https://");
        refuses(&["unix:/run/x.sock", "ftp://a.example", "//a.example", "é"], "https://");
        refuses(&["http:127.0.0.1", "https:/a.example"], "https://");
        refuses(&["http:/\\/127.0.0.1", "http://good\\@127.0.0.1"], "backslashes");
        refuses(&["https://a.exa\tmple", "https://a.exa\nmple", "https://a b"], "control");
    }

    #[test]
    fn user_names_queries_and_fragments_are_refused() {
        refuses(
            &["http://good@127.0.0.1", "http://127.0.0.1@good", "https://:x@a.example"],
            "user name",
        );
        refuses(
            &["https://a.example?key=x", "https://a.example/?", "http://127.0.0.1#@good/"],
            "`#`",
        );
    }

    #[test]
    fn hosts_that_no_name_server_knows_are_refused() {
        refuses(
            &["https://localhost.", "https://a..example", "https://a.example.", "https://.a"],
            "DNS",
        );
        let label = "x".repeat(64);
        refuses(&[&format!("https://{label}.example")], "DNS");
        let name = ["x".repeat(60).as_str(); 5].join(".");
        refuses(&[&format!("https://{name}")], "DNS");
        let of_len = |len: usize| format!("https://a.example/{}", "x".repeat(len - 18));
        assert!(UserUrl::parse(&of_len(2_000), false).is_ok());
        refuses(&[&of_len(2_001)], "2000");
        refuses(
            &["https://", "https://[fe80::1%25eth0]", "https://[::1", "https://1.2.3.4.5"],
            "address",
        );
    }

    #[test]
    fn ports_of_other_protocols_are_refused() {
        for port in [0, 1, 22, 25, 79, 81, 442, 444, 1023, 2375, 3306, 5432, 6379, 6667, 11211] {
            refuses(&[&format!("https://a.example:{port}")], "port");
        }
        refuses(&["https://a.example:80"], "port");
        refuses(&["https://a.example:65536", "https://a.example:-1"], "address");
    }
}
