//! A server of HTTPS at `localhost` that speaks HTTP/2 to whoever can, and tells everybody the same.
//!
//! Its certificate is in `tests/fixtures/tls/`, with the authority that signed it and whose own key is gone; a relay trusts
//! that authority by `SSL_CERT_FILE`.

use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use http::{Request, Response, Version};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

/// Where the authority is, for `SSL_CERT_FILE`.
pub(crate) const AUTHORITY: &str =
    concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/tls/authority.pem");

/// What a request was, as far as it matters where it went.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    pub(crate) version: Version,
    pub(crate) authorization: String,
}

/// An answer: status, header fields and body.
type Told = (u16, Vec<(&'static str, String)>, String);

/// The running server.
pub(crate) struct TlsServer {
    port: u16,
    told: Arc<Mutex<Told>>,
    asked: Arc<Mutex<Vec<Asked>>>,
}

impl TlsServer {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let told = Arc::new(Mutex::new((500, Vec::new(), String::new())));
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (server_told, server_asked) = (Arc::clone(&told), Arc::clone(&asked));
        let acceptor = acceptor();
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let (acceptor, told, asked) =
                    (acceptor.clone(), Arc::clone(&server_told), Arc::clone(&server_asked));
                tokio::spawn(async move {
                    // Whoever does not trust it goes away, which a test sees by what it did not ask.
                    let Ok(socket) = acceptor.accept(socket).await else { return };
                    let service = service_fn(|request| answer(&request, &told, &asked));
                    let protocol = auto::Builder::new(TokioExecutor::new());
                    let _ended = protocol.serve_connection(TokioIo::new(socket), service).await;
                });
            }
        });
        Self { port, told, asked }
    }

    pub(crate) fn base_url(&self) -> String {
        format!("https://localhost:{}/v1", self.port)
    }

    /// What it tells everybody from now on.
    pub(crate) fn tells(&self, status: u16, headers: Vec<(&'static str, String)>, body: &str) {
        *self.told.lock().unwrap() = (status, headers, body.to_owned());
    }

    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }
}

fn acceptor() -> TlsAcceptor {
    let certificate = CertificateDer::from_slice(include_bytes!("../fixtures/tls/localhost.der"));
    let key =
        PrivatePkcs8KeyDer::from(include_bytes!("../fixtures/tls/localhost.key.der").as_slice());
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key.into())
        .unwrap();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    TlsAcceptor::from(Arc::new(config))
}

fn answer(
    request: &Request<Incoming>,
    told: &Mutex<Told>,
    asked: &Mutex<Vec<Asked>>,
) -> impl Future<Output = Result<Response<String>, Infallible>> + use<> {
    let authorization = request.headers().get("authorization");
    let authorization = authorization.map_or("", |value| value.to_str().unwrap()).to_owned();
    asked.lock().unwrap().push(Asked { version: request.version(), authorization });
    let (status, headers, body) = told.lock().unwrap().clone();
    let mut response = Response::builder().status(status);
    for (name, value) in headers {
        response = response.header(name, value);
    }
    std::future::ready(Ok(response.body(body).unwrap()))
}
