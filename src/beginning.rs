//! The beginning of a generation: noted where it survives the process, then begun in the store, and taken back if it cannot
//! be run.

use std::sync::Arc;

use crate::auth::Principal;
use crate::commit::Commit;
use crate::error::{Code, Error};
use crate::journal::Writer;
use crate::outbox::Name;
use crate::relay::Relay;
use crate::saving;
use crate::store::{Begin, Begun, Finish, Place};

/// Records what is about to begin, and begins it. Its provider is not to be called, and nobody told of it, before the commit is
/// done; if that fails, nothing has begun.
///
/// In a file of this relay's own, the two are flushed at the same time.
///
/// # Errors
/// Those of [`crate::store::Store::begin`]; `Internal` of the journal's disk, which ends the process.
pub(crate) async fn begin(
    relay: &Arc<Relay>,
    caller: &Principal,
    writer: &Writer,
    begin: &Begin,
) -> Result<(Begun, Commit), Error> {
    // First of all, so that whatever happens from here on somebody can end what was begun.
    let recorded = record(relay, writer, begin).await?;
    let name = Name::of(writer.log());
    let begun = relay.outage.observe(relay.store.begin(caller, begin)).await;
    let (begun, commit) = match begun {
        Ok(begun) => begun,
        Err(error) => return Err(take_back_if_begun(relay, &name, begin, error).await),
    };
    let (relay, begin) = (Arc::clone(relay), begin.clone());
    let commit = async move {
        wait_for_record(&relay, recorded).await?;
        match relay.outage.observe(commit.wait()).await {
            Ok(()) => Ok(()),
            Err(error) => Err(take_back_if_begun(&relay, &name, &begin, error).await),
        }
    };
    Ok((begun, Commit::new(commit)))
}

/// Takes everything back that was begun, because it cannot be run. What cannot be taken back now is as soon as it can.
pub(crate) async fn take_back(relay: &Relay, writer: &Writer, begin: &Begin) {
    // Told where it failed; the caller is told why the turn was refused, which is what can be acted on.
    let _taken_back =
        saving::save(relay, &Name::of(writer.log()), &Finish::refused(begin.write_token.clone()))
            .await;
}

/// Notes what is about to begin where it survives the process. Nothing of a [`Place::Nowhere`], which saves nothing.
async fn record(relay: &Relay, writer: &Writer, begin: &Begin) -> Result<Commit, Error> {
    if begin.place == Place::Nowhere {
        return Ok(Commit::done());
    }
    let begun = relay.recorder.begin(&Name::of(writer.log()), &begin.write_token).await;
    let (record, commit) = begun.inspect_err(|error| relay.tasks.fail(error.clone()))?;
    writer.record(&relay.recorder, record);
    if relay.store.is_exclusive() {
        return Ok(commit);
    }
    // What begins in a database that others use, and is not on record, nobody would end.
    wait_for_record(relay, commit).await?;
    Ok(Commit::done())
}

async fn wait_for_record(relay: &Relay, recorded: Commit) -> Result<(), Error> {
    recorded.wait().await.inspect_err(|error| relay.tasks.fail(error.clone()))
}

/// After a `begin` that failed with `error`: where nobody knows whether the database carried it out, it is taken back as soon
/// as the database answers, so that the caller's word, that nothing was saved, becomes true. Returns what the caller is told.
async fn take_back_if_begun(relay: &Relay, name: &Name, begin: &Begin, error: Error) -> Error {
    if error.code() != Code::StoreUnavailable || begin.place == Place::Nowhere {
        return error;
    }
    let refused = Finish::refused(begin.write_token.clone());
    match saving::put(relay, name, &refused, &error).await {
        Ok(()) => error,
        Err(broken) => broken,
    }
}
