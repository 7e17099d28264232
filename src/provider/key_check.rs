//! Whether a provider takes the operator's key: asked without spending a token.

use std::time::Duration;

use http::StatusCode;

use super::openai::{Endpoint, Upstream};
use super::transport::describe;

/// How long a provider may take to answer. An operator is waiting.
const CHECK_TIMEOUT: Duration = Duration::from_secs(10);

/// What came of asking.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeyCheck {
    /// The provider answered as one that knows the caller.
    Accepted,
    /// It did not, or there was no answer; what to do about it.
    Failed(String),
    /// It answered something else, which may be its way.
    Unclear(String),
    /// It has no question that costs nothing.
    Untried,
}

impl Endpoint {
    /// Asks the provider who is asking.
    pub(super) async fn check_key(&self, client: &reqwest::Client) -> KeyCheck {
        let Some(path) = self.habits.key_check else { return KeyCheck::Untried };
        // Only the operator's own keys are checked, and they go nowhere else.
        let Upstream::Trusted(chat_completions) = &self.upstream else { return KeyCheck::Untried };
        let mut url = chat_completions.clone();
        let base = url.path().trim_end_matches("/chat/completions").to_owned();
        url.set_path(&format!("{base}{path}"));
        let mut request = client.get(url).timeout(CHECK_TIMEOUT);
        if let Some(key) = self.key.text() {
            request = request.bearer_auth(key);
        }
        match request.send().await.map(|response| response.status()) {
            Ok(status) if status.is_success() => KeyCheck::Accepted,
            Ok(status @ StatusCode::UNAUTHORIZED) => {
                KeyCheck::Failed(format!("it refuses the key ({status}). Set another one."))
            }
            Ok(status) => KeyCheck::Unclear(format!(
                "it answers {status} to a question about its models; whether it takes the key is not known"
            )),
            Err(error) => KeyCheck::Failed(format!(
                "it cannot be reached: {}. Check its base URL, and the network.",
                describe(error)
            )),
        }
    }
}
