//! A bot's `base_url` can lead back to the relay that calls it, by a name that the relay does not know for its own. Such
//! a request would ask itself again and again, so none is taken that a relay sent to a user's address.

use axum::extract::Request;
use axum::middleware::Next;
use axum::response::Response;

use crate::error::{Code, Error};
use crate::provider::LOOP_MARK;

/// Refuses what a relay asks on a user's word.
pub(super) async fn refuse(request: Request, next: Next) -> Result<Response, Error> {
    if request.headers().contains_key(LOOP_MARK) {
        return Err(Error::new(
            Code::UpstreamNotAllowed,
            "This is a relay, and no provider: a bot's `base_url` must not lead to one.",
        ));
    }
    Ok(next.run(request).await)
}
