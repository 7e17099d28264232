//! What `dev` brings along so that nothing has to be set: secrets of its own, a user, and what to paste next.

use std::fs;
use std::io::{ErrorKind, Write};
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::json;
use uuid::Uuid;

use crate::auth::{Issuers, SharedSecret, sign};
use crate::config::{Config, Data};
use crate::error::{Code, Error};
use crate::seal::{self, MasterKeys};
use crate::text;

/// The user that `token` speaks for unless told otherwise: always the same, so that stories are found again.
pub const USER: Uuid = Uuid::from_u128(0x0000_0000_0000_4000_8000_0000_0000_0001);

/// Who signs in place of Supabase Auth where no issuer is configured.
const ISSUER: &str = "http://127.0.0.1/auth/v1";

/// The files of the secrets in the data folder.
const SECRET_FILE: &str = "jwt-secret";
const MASTER_KEYS_FILE: &str = "master-keys";

/// The id of the master key that is made there.
const MASTER_KEY_ID: &str = "dev";

/// How long the token that is printed at the start is valid.
const PRINTED_TOKEN_TIME: Duration = Duration::from_secs(24 * 60 * 60);

/// Sets the secret that access tokens are signed with, if none is set: the one in the data folder, which is made at
/// the first start, readable by its owner alone.
///
/// # Errors
/// If it can neither be read nor made.
pub fn ensure_secret(config: &mut Config) -> Result<SharedSecret, Error> {
    let secret = match (&config.auth.shared_secret, &config.data) {
        (Some(secret), _) => secret.clone(),
        (None, Data::Folder(folder)) => {
            kept(&folder.join(SECRET_FILE), &new_secret()?, SharedSecret::new)?
        }
        (None, Data::Memory) => SharedSecret::new(&new_secret()?)
            .ok_or_else(|| Error::internal("a new secret is too short"))?,
    };
    config.auth.shared_secret = Some(secret.clone());
    Ok(secret)
}

/// Sets what users' own keys are sealed with, if it is not set: the master keys in the data folder, of which one is made
/// at the first start, readable by its owner alone. Without it what was sealed cannot be opened any more.
///
/// # Errors
/// If they can neither be read nor made.
pub fn ensure_master_keys(config: &mut Config) -> Result<(), Error> {
    if config.master_keys.is_some() {
        return Ok(());
    }
    let read = |pairs: &str| MasterKeys::parse(pairs).ok();
    let new = seal::new_pair(MASTER_KEY_ID)?;
    config.master_keys = match &config.data {
        Data::Folder(folder) => Some(kept(&folder.join(MASTER_KEYS_FILE), &new, read)?),
        Data::Memory => read(&new),
    };
    Ok(())
}

/// What the file holds, as `read` makes something of it; where there is no file, one with `new` in it is made.
fn kept<T>(path: &Path, new: &str, read: impl Fn(&str) -> Option<T>) -> Result<T, Error> {
    let cannot = |what: &str, error: std::io::Error| {
        Error::new(
            Code::Internal,
            format!(
                "cannot {what} {}: {error}. Set RELAY_DATA to a folder that the relay can write.",
                path.display()
            ),
        )
    };
    if let Some(folder) = path.parent() {
        if folder.is_file() {
            return Err(Error::new(
                Code::Internal,
                format!(
                    "{} is a file, and must be a folder. Set RELAY_DATA to another place, or move that file away.",
                    folder.display()
                ),
            ));
        }
        fs::create_dir_all(folder).map_err(|error| cannot("make the folder of", error))?;
    }
    // Made only if it is not there: two starts at once must agree.
    match fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path) {
        Ok(mut file) => file
            .write_all(new.as_bytes())
            .and_then(|()| file.sync_all())
            .map_err(|error| cannot("write", error))?,
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
        Err(error) => return Err(cannot("make", error)),
    }
    let text = fs::read_to_string(path).map_err(|error| cannot("read", error))?;
    read(text.trim()).ok_or_else(|| {
        Error::new(
            Code::Internal,
            format!("{} holds no secret. Remove it, and a new one is made.", path.display()),
        )
    })
}

/// A secret that nobody knows.
fn new_secret() -> Result<String, Error> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).map_err(Error::internal)?;
    Ok(text::hex(&bytes))
}

/// An access token like those of Supabase Auth.
///
/// # Errors
/// Internal, if it cannot be signed.
pub fn token(
    config: &Config,
    secret: &SharedSecret,
    user: Uuid,
    is_anonymous: bool,
    times: (Timestamp, Duration),
) -> Result<String, Error> {
    let (now, time) = times;
    let iss = match &config.auth.issuers {
        Issuers::Only(issuers) => issuers.first().cloned(),
        Issuers::Any => None,
    };
    let expires_at = now.saturating_add(time).map_err(Error::internal)?;
    let claims = json!({
        "iss": iss.unwrap_or_else(|| ISSUER.to_owned()),
        "sub": user,
        "aud": "authenticated",
        "role": "authenticated",
        "iat": now.as_second(),
        "exp": expires_at.as_second(),
        "is_anonymous": is_anonymous,
    });
    sign(secret, &claims)
}

/// What to paste next: it works as it is, in any POSIX shell with curl.
///
/// # Errors
/// Internal, if no token can be signed.
pub fn welcome(
    config: &Config,
    secret: &SharedSecret,
    address: SocketAddr,
    now: Timestamp,
) -> Result<String, Error> {
    let token = token(config, secret, USER, false, (now, PRINTED_TOKEN_TIME))?;
    let data = match &config.data {
        Data::Folder(folder) => format!("keeps its data in {}", folder.display()),
        Data::Memory => "keeps nothing: RELAY_DATA is memory".to_owned(),
    };
    Ok(format!(
        r#"
Storytellr Relay listens on http://{address} and {data}.
Paste into another terminal:

  RELAY=http://{address}
  TOKEN={token}
  auth="Authorization: Bearer $TOKEN"

  # a new story, and its first page
  STORY=$(curl -s $RELAY/v1/conversations -H "$auth" -d '{{"title": "The lighthouse"}}' | sed -E 's/^\{{"id":([0-9]+).*/\1/')
  curl -N $RELAY/v1/stream -H "$auth" -d '{{"conversation_id": '$STORY', "input": "Tell me of the lighthouse."}}'

  # the page told another way
  HEAD=$(curl -s $RELAY/v1/conversations/$STORY -H "$auth" | sed -E 's/.*"head_id":([0-9]+).*/\1/')
  curl -N $RELAY/v1/reroll -H "$auth" -d '{{"message_id": '$HEAD', "guidance": "darker, and shorter"}}'

  # the whole story, with both tellings; it is still there after a restart
  curl -s $RELAY/v1/conversations/$STORY -H "$auth"

The `demo` provider needs no key. With one in the environment (DEEPSEEK_API_KEY=... and so on), make a bot of it:

  curl -s $RELAY/v1/bots -H "$auth" -d '{{"name": "Narrator", "provider": "deepseek", "model": "deepseek-chat", "is_default": true}}'

"#
    ))
}
