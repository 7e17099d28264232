//! The head of a request, and that of the response to it.

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use tokio::io::{AsyncRead, AsyncReadExt};
use url::Url;

use super::Fault;

/// The longest head of a response, in bytes, and how many fields it may have.
const LEN_MAX: usize = 64 << 10;
const FIELDS_MAX: usize = 100;

/// How many interim responses may come before the final one.
const INTERIM_MAX: usize = 8;

/// The head of a response.
#[derive(Debug)]
pub(crate) struct Head {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    /// Whether it says HTTP/1.1: what is older closes its connections, and knows no chunks.
    pub(super) is_1_1: bool,
}

/// The head of a `POST` of so many bytes, which come behind it.
pub(super) fn encode(url: &Url, headers: &HeaderMap, len: usize) -> Vec<u8> {
    let mut host = url.host_str().unwrap_or_default().to_owned();
    if let Some(port) = url.port() {
        host = format!("{host}:{port}");
    }
    let mut head =
        format!("POST {} HTTP/1.1\r\nhost: {host}\r\ncontent-length: {len}\r\n", url.path())
            .into_bytes();
    for (name, value) in headers {
        for part in [name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"] {
            head.extend_from_slice(part);
        }
    }
    head.extend_from_slice(b"\r\n");
    head
}

/// Reads the head of the final response. What has been read behind it is in `rest`.
pub(super) async fn read(
    reading: &mut (impl AsyncRead + Unpin),
    rest: &mut Vec<u8>,
) -> Result<Head, Fault> {
    let mut interim = 0;
    loop {
        match parse(rest)? {
            Some((head, len)) => {
                rest.drain(..len);
                if !head.status.is_informational() {
                    return Ok(head);
                }
                interim += 1;
                if head.status == StatusCode::SWITCHING_PROTOCOLS || interim > INTERIM_MAX {
                    return Err(Fault::Malformed("it does not come to its response"));
                }
            }
            None if rest.len() >= LEN_MAX => return Err(Fault::Malformed("its head is too long")),
            None => {
                if reading.read_buf(rest).await? == 0 {
                    return Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into());
                }
            }
        }
    }
}

/// The head that `bytes` begin with, and its length; `None` if it is not there in whole.
fn parse(bytes: &[u8]) -> Result<Option<(Head, usize)>, Fault> {
    let mut fields = [httparse::EMPTY_HEADER; FIELDS_MAX];
    let mut response = httparse::Response::new(&mut fields);
    let malformed = |_| Fault::Malformed("its head cannot be read");
    let len = match response.parse(bytes).map_err(malformed)? {
        httparse::Status::Partial => return Ok(None),
        httparse::Status::Complete(len) => len,
    };
    let status = response.code.and_then(|code| StatusCode::from_u16(code).ok());
    let status = status.ok_or(Fault::Malformed("its status is none"))?;
    let mut headers = HeaderMap::new();
    for field in response.headers.iter() {
        let name = HeaderName::from_bytes(field.name.as_bytes());
        let value = HeaderValue::from_bytes(field.value);
        let (Ok(name), Ok(value)) = (name, value) else {
            return Err(Fault::Malformed("a field of its head cannot be read"));
        };
        headers.append(name, value);
    }
    Ok(Some((Head { status, headers, is_1_1: response.version == Some(1) }, len)))
}

impl Head {
    /// Whether another request may follow on the connection.
    pub(super) fn keeps_alive(&self) -> bool {
        // A length beside chunks is how responses are smuggled (RFC 9112, section 6.3).
        let is_ambiguous = self.headers.contains_key(header::TRANSFER_ENCODING)
            && self.headers.contains_key(header::CONTENT_LENGTH);
        self.is_1_1
            && !is_ambiguous
            && !self.words(header::CONNECTION).any(|word| word.eq_ignore_ascii_case("close"))
    }

    /// The words of a field that is a list; one that is no text is one word that nobody knows.
    pub(super) fn words(&self, name: HeaderName) -> impl Iterator<Item = &str> {
        let values = self.headers.get_all(name).into_iter();
        let texts = values.map(|value| value.to_str().unwrap_or("\u{fffd}"));
        texts.flat_map(|text| text.split(',')).map(str::trim).filter(|word| !word.is_empty())
    }
}
