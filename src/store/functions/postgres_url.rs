//! The address of a Postgres database, as people paste it, and how far its server is trusted.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use tokio_postgres::config::{Host, SslMode};
use tokio_postgres_rustls::MakeRustlsConnect;
use url::Url;

use crate::error::{Code, Error};

/// Parameters that other clients know and that mean nothing here: they tell of poolers, for which this one is made.
const IGNORED: [&str; 5] = ["pgbouncer", "supa", "workaround", "connection_limit", "pool_timeout"];

/// After so much silence the other end is asked whether it is there; NATs forget after some minutes.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(60);

/// How long sent bytes may go without acknowledgement.
const UNANSWERED_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a connection may take where the address says nothing of it.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// An address like `postgres://user:password@host:5432/database?sslmode=verify-full&sslrootcert=prod-ca.crt`.
#[derive(Clone, PartialEq, Eq)]
pub struct PostgresUrl {
    config: tokio_postgres::Config,
    trust: Trust,
}

/// Whose certificates are believed.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Trust {
    /// There are none: `sslmode=disable`.
    NoTls,
    /// Everybody's, as with libpq's `prefer` and `require`: encrypted against listeners and not against impostors.
    Anybody,
    /// What this machine's authorities have signed for that host: `sslmode=verify-full`.
    System,
    /// What the authority in this file has signed for that host: `sslrootcert`.
    File(PathBuf),
}

/// How a connection is encrypted.
#[expect(missing_debug_implementations, reason = "the connector has none")]
pub enum Tls {
    /// Not at all.
    Off,
    /// By this, if the server can.
    On(MakeRustlsConnect),
}

/// Says what an address looks like.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("must be like postgres://user:password@host:5432/database?sslmode=require ({0})")]
pub struct InvalidPostgresUrl(String);

impl FromStr for PostgresUrl {
    type Err = InvalidPostgresUrl;

    fn from_str(text: &str) -> Result<Self, InvalidPostgresUrl> {
        let invalid = |reason: &str| InvalidPostgresUrl(reason.to_owned());
        let mut url = Url::parse(text).map_err(|error| invalid(&error.to_string()))?;
        let (mut mode, mut root) = ("prefer".to_owned(), None);
        for (name, value) in url.query_pairs().into_owned() {
            match name.as_str() {
                "sslmode" => mode = value,
                "sslrootcert" => root = Some(value),
                _ => {}
            }
        }
        // What is for the driver goes to it as it was written: it decodes by rules of its own.
        let is_ours = |part: &&str| {
            let name = part.split('=').next().unwrap_or_default();
            matches!(name, "sslmode" | "sslrootcert") || IGNORED.contains(&name)
        };
        let query = url.query().unwrap_or_default();
        let others: Vec<_> = query.split('&').filter(|part| !is_ours(part)).collect();
        let others = others.join("&");
        url.set_query(Some(others.as_str()).filter(|others| !others.is_empty()));
        let mut config: tokio_postgres::Config = url
            .as_str()
            .parse()
            // Its cause names the part, and not the password.
            .map_err(|error: tokio_postgres::Error| invalid(&cause(&error)))?;
        let (ssl_mode, trust) = match (mode.as_str(), root) {
            ("disable", _) => (SslMode::Disable, Trust::NoTls),
            ("allow" | "prefer", None) => (SslMode::Prefer, Trust::Anybody),
            ("require", None) => (SslMode::Require, Trust::Anybody),
            ("verify-ca" | "verify-full", None) => (SslMode::Require, Trust::System),
            ("allow" | "prefer" | "require" | "verify-ca" | "verify-full", Some(root)) => {
                let file = |root| Trust::File(PathBuf::from(root));
                let trust = if root == "system" { Trust::System } else { file(root) };
                (SslMode::Require, trust)
            }
            _ => return Err(invalid("no such sslmode")),
        };
        config.ssl_mode(ssl_mode);
        // A connection that something on the way has forgotten is noticed soon, and not by the next reader.
        config.keepalives_idle(KEEPALIVE_IDLE).tcp_user_timeout(UNANSWERED_TIMEOUT);
        if config.get_connect_timeout().is_none() {
            config.connect_timeout(CONNECT_TIMEOUT);
        }
        if config.get_application_name().is_none() {
            config.application_name("storytellr-relay");
        }
        if config.get_dbname().is_none() || config.get_hosts().is_empty() {
            return Err(invalid("it names no host or no database"));
        }
        Ok(Self { config, trust })
    }
}

fn cause(error: &dyn std::error::Error) -> String {
    error.source().map_or_else(|| error.to_string(), ToString::to_string)
}

impl PostgresUrl {
    /// Where and as whom to connect.
    #[must_use]
    pub fn config(&self) -> &tokio_postgres::Config {
        &self.config
    }

    /// The hosts, for people to read.
    #[must_use]
    pub fn hosts(&self) -> String {
        let host = |host: &Host| match host {
            Host::Tcp(name) => name.clone(),
            Host::Unix(path) => path.display().to_string(),
        };
        self.config.get_hosts().iter().map(host).collect::<Vec<_>>().join(", ")
    }

    /// Whether an impostor on the way would not be noticed.
    #[must_use]
    pub fn trusts_anybody(&self) -> bool {
        self.trust == Trust::Anybody
    }

    /// How to encrypt.
    ///
    /// # Errors
    /// `StoreUnavailable`, with a message for the operator, if the certificates cannot be read.
    pub fn tls(&self) -> Result<Tls, Error> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(Error::internal)?;
        let config = match &self.trust {
            Trust::NoTls => return Ok(Tls::Off),
            Trust::Anybody => builder
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(AnyCertificate(provider)))
                .with_no_client_auth(),
            Trust::System => {
                let mut roots = RootCertStore::empty();
                roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
                if roots.is_empty() {
                    return Err(Error::new(
                        Code::StoreUnavailable,
                        "this machine knows no certificate authorities. Install ca-certificates.",
                    ));
                }
                builder.with_root_certificates(roots).with_no_client_auth()
            }
            Trust::File(path) => {
                builder.with_root_certificates(roots_of(path)?).with_no_client_auth()
            }
        };
        Ok(Tls::On(MakeRustlsConnect::new(config)))
    }
}

fn roots_of(path: &Path) -> Result<RootCertStore, Error> {
    let cannot = |reason: &dyn fmt::Display| {
        Error::new(
            Code::StoreUnavailable,
            format!(
                "cannot read certificates from {}: {reason}. Set sslrootcert to a PEM file.",
                path.display()
            ),
        )
    };
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(path).map_err(|error| cannot(&error))? {
        let certificate = certificate.map_err(|error| cannot(&error))?;
        roots.add(certificate).map_err(|error| cannot(&error))?;
    }
    if roots.is_empty() {
        return Err(cannot(&"there is none in it"));
    }
    Ok(roots)
}

impl fmt::Debug for PostgresUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The host and no more: the rest may be secret.
        f.debug_struct("PostgresUrl")
            .field("hosts", &self.config.get_hosts())
            .finish_non_exhaustive()
    }
}

/// Accepts every certificate, and checks only that the server has its key.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _certificate: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_they_are_pasted() {
        for (text, ssl_mode, trust) in [
            ("postgres://u:p@h/d", SslMode::Prefer, Trust::Anybody),
            (
                "postgresql://u:p%40x@h:6543/d?sslmode=require&pgbouncer=true",
                SslMode::Require,
                Trust::Anybody,
            ),
            ("postgres://u@h/d?sslmode=verify-full", SslMode::Require, Trust::System),
            (
                "postgres://u@h/d?sslrootcert=/ca.crt",
                SslMode::Require,
                Trust::File("/ca.crt".into()),
            ),
            ("postgres://u@h/d?sslmode=disable", SslMode::Disable, Trust::NoTls),
            ("postgres://u@[::1]:5433/d?sslrootcert=system", SslMode::Require, Trust::System),
            (
                "postgres://u.ref@h/d?options=-c%20search_path%3Dx&sslmode=require",
                SslMode::Require,
                Trust::Anybody,
            ),
        ] {
            let url: PostgresUrl = text.parse().unwrap();
            assert_eq!((url.config.get_ssl_mode(), &url.trust), (ssl_mode, &trust), "{text}");
        }
        let url: PostgresUrl = "postgres://u@h/d?options=-c%20x".parse().unwrap();
        assert_eq!(url.config.get_options(), Some("-c x"));
        let url: PostgresUrl = "postgres://u:s%40cret@h/d".parse().unwrap();
        assert_eq!(url.config.get_password(), Some(b"s@cret".as_slice()));
        assert!(!format!("{url:?}").contains("s@cret"));
    }

    #[test]
    fn what_is_no_address_is_refused_without_its_password() {
        for text in [
            "postgres://u:s3cret@h/d?sslmode=yes",
            "postgres://u:s3cret@h:port/d",
            "postgres://u:s3cret@h/d?nonsense=1",
            "postgres://u:s3cret@/d",
            "postgres://u:s3cret@h",
            "h/d",
        ] {
            let error = text.parse::<PostgresUrl>().unwrap_err().to_string();
            assert!(!error.contains("s3cret"), "{error}");
        }
    }
}
