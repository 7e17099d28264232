//! Where a key set comes from.

use std::time::Duration;

use async_trait::async_trait;
use http::{StatusCode, header};
use url::Url;

/// The longest set in bytes. A set of four keys has some two thousand.
const LEN_MAX: usize = 256 << 10;

/// Who has the set.
#[async_trait]
pub(super) trait Source: Send + Sync + 'static {
    /// The set as it is now.
    ///
    /// # Errors
    /// Why it cannot be had.
    async fn fetch(&self) -> Result<Vec<u8>, String>;
}

/// The project's Supabase Auth.
#[derive(Debug)]
pub(super) struct Project {
    url: Url,
    client: reqwest::Client,
}

impl Project {
    /// A fetch takes no longer than `fetch_timeout`.
    pub(super) fn new(url: Url, fetch_timeout: Duration) -> Result<Self, reqwest::Error> {
        let client = reqwest::Client::builder()
            .user_agent(concat!("storytellr-relay/", env!("CARGO_PKG_VERSION")))
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .timeout(fetch_timeout)
            .build()?;
        Ok(Self { url, client })
    }
}

#[async_trait]
impl Source for Project {
    async fn fetch(&self) -> Result<Vec<u8>, String> {
        let request = self.client.get(self.url.clone()).header(header::ACCEPT, "application/json");
        let mut response = request.send().await.map_err(|error| error.without_url().to_string())?;
        if response.status() != StatusCode::OK {
            return Err(format!("status {}", response.status()));
        }
        let mut body = Vec::new();
        while let Some(bytes) =
            response.chunk().await.map_err(|error| error.without_url().to_string())?
        {
            if body.len() + bytes.len() > LEN_MAX {
                return Err(format!("it has more than {LEN_MAX} bytes"));
            }
            body.extend_from_slice(&bytes);
        }
        Ok(body)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;
    use tokio::time::timeout;

    use super::*;

    /// What is fetched of a server that answers so, and its request.
    async fn fetched(status: u16, body: &str) -> (Result<Vec<u8>, String>, String) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/keys", listener.local_addr().unwrap()).parse().unwrap();
        let project = Project::new(url, Duration::from_secs(20)).unwrap();
        let answer = async {
            let (mut socket, _) = listener.accept().await.unwrap();
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                socket.read_buf(&mut request).await.unwrap();
            }
            let head =
                format!("HTTP/1.1 {status} S\r\nlocation: /other\r\nconnection: close\r\n\r\n");
            socket.write_all(head.as_bytes()).await.unwrap();
            // Who has read enough closes.
            let _written = socket.write_all(body.as_bytes()).await;
            String::from_utf8(request).unwrap()
        };
        let both = async { tokio::join!(project.fetch(), answer) };
        // Nobody may have asked.
        timeout(Duration::from_secs(20), both).await.unwrap()
    }

    #[tokio::test]
    async fn what_the_project_says_is_fetched_up_to_a_length() {
        for len in [0, 1, LEN_MAX] {
            let (fetched, request) = fetched(200, &"x".repeat(len)).await;
            assert_eq!(fetched.unwrap().len(), len);
            assert!(request.starts_with("GET /keys ") && request.contains("application/json"));
        }
        let (fetched, _) = fetched(200, &"x".repeat(LEN_MAX + 1)).await;
        assert_eq!(fetched.unwrap_err(), "it has more than 262144 bytes");
    }

    #[tokio::test]
    async fn nothing_but_200_is_a_set() {
        for status in [201, 302, 404, 500] {
            let (fetched, _) = fetched(status, "{}").await;
            assert!(fetched.unwrap_err().starts_with(&format!("status {status}")));
        }
    }
}
