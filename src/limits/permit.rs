//! Leave to run one generation, which nobody can forget to give back.

use std::fmt;
use std::sync::Arc;

use super::Limits;
use crate::auth::Principal;
use crate::error::Error;
use crate::outbox::Name;

/// Leave to run one generation.
pub struct Permit {
    limits: Arc<dyn Limits>,
    /// Absent once it has been given back.
    name: Option<Name>,
}

/// Leave to run the generation of that name, which is the caller's.
///
/// # Errors
/// As [`Limits::enter`].
pub async fn admit(
    limits: &Arc<dyn Limits>,
    caller: &Principal,
    name: Name,
) -> Result<Permit, Error> {
    limits.enter(caller, &name).await?;
    Ok(Permit { limits: Arc::clone(limits), name: Some(name) })
}

impl Permit {
    /// Gives it back. When this has returned, the user may run another generation at once, at any relay.
    pub async fn give_back(mut self) {
        if let Some(name) = self.name.take() {
            self.limits.leave(&name).await;
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if let Some(name) = self.name.take() {
            self.limits.leave_soon(name);
        }
    }
}

impl fmt::Debug for Permit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Permit")
    }
}
