//! The database contract: what every store must do. A new store is finished when it passes this.
//!
//! Each test is a function of a store; at the end of the file each store runs them all.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use jiff::Timestamp;
use secrecy::SecretString;
use storytellr_relay::auth::Principal;
use storytellr_relay::bot::BotSettings;
use storytellr_relay::clock;
use storytellr_relay::error::{Code, Error};
use storytellr_relay::event::{Failure, Usage};
use storytellr_relay::id::{BotId, ConversationId, MessageId, MessageRef, StreamId, VariantId};
use storytellr_relay::provider_key::NewKey;
use storytellr_relay::store::functions::FunctionStore;
use storytellr_relay::store::functions::postgres::PostgresFunctions;
use storytellr_relay::store::functions::postgrest::PostgrestFunctions;
use storytellr_relay::store::sqlite::SqliteStore;
use storytellr_relay::store::{
    Begin, Begun, ConversationPatch, Cursor, Finish, Finished, KEYS_MAX, New, Outcome, Place, Rows,
    Store, new_write_token,
};
use storytellr_relay::story::{Message, Role, Status};
use uuid::Uuid;

use crate::database::Database;
use crate::postgrest::Postgrest;
use crate::relay::principal;

/// Texts of any length.
const ALL: u64 = 1 << 40;

/// What a variant counts beside its texts.
const VARIANT_LEN: u64 = 512;

/// A user with a conversation, and the verbs of a story.
struct Story {
    store: Arc<dyn Store>,
    user: Principal,
    id: ConversationId,
    /// What each variant that was begun is finished with.
    write_tokens: Mutex<HashMap<VariantId, SecretString>>,
}

impl Story {
    /// Of a new user, who has a bot.
    async fn new(store: &Arc<dyn Store>) -> Self {
        let user = principal(Uuid::now_v7());
        bot(store, &user, BotSettings::demo()).await;
        let id = store.create_conversation(&user, "", None).await.unwrap().id;
        Self { store: Arc::clone(store), user, id, write_tokens: Mutex::default() }
    }

    async fn begin(&self, place: Place) -> New {
        self.begin_with(&begin(place)).await
    }

    async fn begin_with(&self, begin: &Begin) -> New {
        match begun(&self.store, &self.user, begin).await.unwrap() {
            Begun::New(new) => {
                let variant = new.rows.as_ref().map(|rows| rows.variant_id);
                let tokens = variant.map(|id| (id, begin.write_token.clone()));
                self.write_tokens.lock().unwrap().extend(tokens);
                *new
            }
            Begun::Existing(saved) => panic!("{saved:?}"),
        }
    }

    fn write_token(&self, rows: &Rows) -> SecretString {
        self.write_tokens.lock().unwrap()[&rows.variant_id].clone()
    }

    fn reply(&self, parent_id: Option<MessageId>, input: &str) -> Place {
        Place::Reply { conversation_id: self.id, parent_id, input: Some(input.to_owned()) }
    }

    /// A turn that has begun.
    async fn ask(&self, input: &str) -> (New, Rows) {
        let mut new = self.begin(self.reply(None, input)).await;
        let rows = new.rows.take().unwrap();
        (new, rows)
    }

    async fn finish(&self, rows: &Rows, outcome: Outcome, content: &str) -> Finished {
        self.store.finish(&finish(&self.write_token(rows), outcome, content)).await.unwrap()
    }

    /// A whole turn; the reply.
    async fn tell(&self, input: &str, answer: &str) -> MessageId {
        let (_, rows) = self.ask(input).await;
        self.finish(&rows, Outcome::Complete, answer).await;
        rows.message_id
    }

    async fn reroll(&self, message: MessageId) -> Rows {
        self.begin(Place::Reroll { message: MessageRef::Id(message) }).await.rows.unwrap()
    }

    async fn message(&self, id: MessageId) -> Option<Message> {
        let tree = self.store.read_tree(&self.user, self.id, ALL).await.unwrap();
        tree.messages.into_iter().find(|message| message.id == id)
    }

    async fn head(&self) -> Option<MessageId> {
        self.store.read_tree(&self.user, self.id, ALL).await.unwrap().conversation.head_id
    }

    async fn set_head(&self, id: MessageId) {
        let patch = ConversationPatch { head_id: Some(id), ..ConversationPatch::default() };
        self.store.patch_conversation(&self.user, self.id, &patch).await.unwrap();
    }

    /// The state, text and activity of the variant.
    async fn variant(&self, rows: &Rows) -> Option<(Status, String, bool)> {
        let message = self.message(rows.message_id).await?;
        let is_active = message.active_variant_id == Some(rows.variant_id);
        let variant = message.variants.into_iter().find(|variant| variant.id == rows.variant_id)?;
        Some((variant.status, variant.content, is_active))
    }

    /// The story as it reads.
    async fn reads(&self) -> Vec<String> {
        let tree = self.store.read_tree(&self.user, self.id, ALL).await.unwrap();
        let text = |id: &MessageId| {
            let message = tree.messages.iter().find(|message| message.id == *id).unwrap();
            let mut variants = message.variants.iter();
            variants
                .find(|variant| Some(variant.id) == message.active_variant_id)
                .unwrap()
                .content
                .clone()
        };
        tree.path.iter().map(text).collect()
    }
}

/// What has begun, when it is safe.
async fn begun(store: &Arc<dyn Store>, user: &Principal, begin: &Begin) -> Result<Begun, Error> {
    let (begun, commit) = store.begin(user, begin).await?;
    commit.wait().await?;
    Ok(begun)
}

async fn bot(store: &Arc<dyn Store>, user: &Principal, settings: BotSettings) -> BotId {
    store.create_bot(user, &settings).await.unwrap().id
}

fn begin(place: Place) -> Begin {
    begin_as(StreamId::random(), "one", place)
}

fn begin_as(stream_id: StreamId, fingerprint: &str, place: Place) -> Begin {
    let expires_at = clock::now() + Duration::from_secs(600);
    Begin {
        stream_id,
        fingerprint: fingerprint.to_owned(),
        place,
        bot_id: None,
        wants_path: true,
        expires_at,
        write_token: new_write_token().unwrap(),
    }
}

/// The same request, made anew.
fn again(begin: &Begin) -> Begin {
    Begin { write_token: new_write_token().unwrap(), ..begin.clone() }
}

fn finish(write_token: &SecretString, outcome: Outcome, content: &str) -> Finish {
    let failure =
        Failure { code: "provider_failed".into(), message: "It failed.".into(), retryable: true };
    Finish {
        write_token: write_token.clone(),
        outcome,
        content: content.to_owned(),
        reasoning: String::new(),
        finish_reason: Some("stop".to_owned()),
        usage: Some(Usage { prompt_tokens: 1, completion_tokens: 2, estimated: false }),
        failure: (outcome == Outcome::Failed).then_some(failure),
        model: "model-1".to_owned(),
    }
}

fn code<T: std::fmt::Debug>(result: Result<T, Error>) -> Code {
    result.unwrap_err().code()
}

fn all() -> Cursor {
    Cursor { after: None, limit: 100 }
}

async fn a_streaming_variant_changes_nothing_that_is_shown(store: Arc<dyn Store>) {
    let story = Story::new(&store).await;
    let first = story.tell("u0", "a0").await;
    let rows = story.reroll(first).await;
    assert_eq!(story.variant(&rows).await, Some((Status::Streaming, String::new(), false)));
    assert_eq!(
        (story.head().await, story.reads().await),
        (Some(first), vec!["u0".to_owned(), "a0".to_owned()])
    );
    let (_, rows) = story.ask("u1").await;
    assert_eq!(story.message(rows.message_id).await.unwrap().active_variant_id, None);
    assert_eq!(story.head().await, rows.user_message_id);
}

/// The answer to a finish that leaves no rows.
fn nothing(outcome: Outcome, content: &str) -> Finished {
    let content_len = Some(content.len() as u64);
    Finished { message_id: None, variant_id: None, outcome: Some(outcome), content_len }
}

/// The rest of the table of states: what an ending does to a new reply, and to a reroll.
async fn each_ending_does_what_the_table_says(store: Arc<dyn Store>) {
    // Outcome, text, state, active in a new reply, head moves, active in a reroll.
    for (outcome, text, status, new_active, head_moves, reroll_active) in [
        (Outcome::Complete, "text", Status::Complete, true, true, true),
        (Outcome::Complete, "", Status::Complete, true, true, true),
        (Outcome::Stopped, "text", Status::Stopped, true, true, true),
        (Outcome::Stopped, "", Status::Stopped, false, false, false),
        (Outcome::Interrupted, "text", Status::Interrupted, true, true, false),
        (Outcome::Interrupted, "", Status::Interrupted, true, true, false),
        (Outcome::Failed, "text", Status::Failed, false, false, false),
    ] {
        let story = Story::new(&store).await;
        let (_, rows) = story.ask("u0").await;
        let finished = story.finish(&rows, outcome, text).await;
        assert_eq!(
            finished,
            Finished {
                message_id: Some(rows.message_id),
                variant_id: Some(rows.variant_id),
                ..nothing(outcome, text)
            }
        );
        assert_eq!(
            story.variant(&rows).await,
            Some((status, text.to_owned(), new_active)),
            "{outcome:?} {text}"
        );
        let head = if head_moves { Some(rows.message_id) } else { rows.user_message_id };
        assert_eq!(story.head().await, head, "{outcome:?} {text}");

        let story = Story::new(&store).await;
        let told = story.tell("u0", "a0").await;
        let rows = story.reroll(told).await;
        story.finish(&rows, outcome, text).await;
        assert_eq!(
            story.variant(&rows).await,
            Some((status, text.to_owned(), reroll_active)),
            "{outcome:?} {text}"
        );
        assert_eq!(story.head().await, Some(told));
    }
}

async fn a_failure_without_text_leaves_nothing_unless_something_hangs_on_it(store: Arc<dyn Store>) {
    let story = Story::new(&store).await;
    let (_, rows) = story.ask("u0").await;
    let finished = story.finish(&rows, Outcome::Failed, "").await;
    assert_eq!(finished, nothing(Outcome::Failed, ""));
    assert!(story.message(rows.message_id).await.is_none());
    assert_eq!(story.reads().await, ["u0"]);

    let told = story.tell("u1", "a1").await;
    let rows = story.reroll(told).await;
    story.finish(&rows, Outcome::Failed, "").await;
    assert_eq!(story.message(told).await.unwrap().variants.len(), 1, "the reroll alone is removed");

    let (_, rows) = story.ask("u2").await;
    let below = story.reply(Some(rows.message_id), "below");
    story.begin(below).await;
    let finished = story.finish(&rows, Outcome::Failed, "").await;
    assert_eq!(finished.message_id, Some(rows.message_id));
    assert_eq!(story.variant(&rows).await, Some((Status::Failed, String::new(), false)));
}

async fn a_refused_turn_leaves_nothing(store: Arc<dyn Store>) {
    let story = Story::new(&store).await;
    let told = story.tell("u0", "a0").await;
    let before = store.read_tree(&story.user, story.id, ALL).await.unwrap();
    let place = story.reply(None, "too long");
    let request = begin_as("mine".parse().unwrap(), "one", place);
    let new = story.begin_with(&request).await;
    let rows = new.rows.unwrap();
    let nothing = nothing(Outcome::Refused, "");
    assert_eq!(story.finish(&rows, Outcome::Refused, "").await, nothing);
    let after = store.read_tree(&story.user, story.id, ALL).await.unwrap();
    assert_eq!((after.messages, after.conversation.head_id), (before.messages, Some(told)));
    assert_eq!(
        story.finish(&rows, Outcome::Refused, "").await,
        nothing,
        "asked again it answers the same"
    );
    assert!(store.find_stream(&story.user, &request.stream_id).await.unwrap().is_none());
    assert!(
        matches!(begun(&store, &story.user, &again(&request)).await.unwrap(), Begun::New(_)),
        "the name is free"
    );
}

async fn a_head_on_a_reply_that_comes_to_nothing_moves_up(store: Arc<dyn Store>) {
    let story = Story::new(&store).await;
    let told = story.tell("u0", "a0").await;
    let (_, rows) = story.ask("u1").await;
    story.set_head(rows.message_id).await;
    story.finish(&rows, Outcome::Refused, "").await;
    assert_eq!(story.head().await, Some(told));
    let (_, rows) = story.ask("u1").await;
    story.set_head(rows.message_id).await;
    story.finish(&rows, Outcome::Failed, "").await;
    assert_eq!(story.head().await, rows.user_message_id);
}

async fn a_refused_turn_does_not_go_back_to_what_was_deleted(store: Arc<dyn Store>) {
    let story = Story::new(&store).await;
    let first = story.tell("u0", "a0").await;
    let last = story.tell("u1", "a1").await;
    let rows = story.begin(story.reply(Some(first), "elsewhere")).await.rows.unwrap();
    let question = story.message(last).await.unwrap().parent_id.unwrap();
    store.delete_message(&story.user, question).await.unwrap();
    story.finish(&rows, Outcome::Refused, "").await;
    assert_eq!(story.head().await, None);
    story.tell("the store", "still works").await;
}

async fn a_variant_that_was_chosen_though_late_may_fail_without_text(store: Arc<dyn Store>) {
    let story = Story::new(&store).await;
    let told = story.tell("u0", "a0").await;
    let reroll = begin(Place::Reroll { message: MessageRef::Id(told) });
    let request = Begin { expires_at: Timestamp::UNIX_EPOCH, ..reroll };
    let new = story.begin_with(&request).await;
    let rows = new.rows.unwrap();
    store.select_variant(&story.user, told, rows.variant_id, ALL).await.unwrap();
    story.finish(&rows, Outcome::Failed, "").await;
    let message = story.message(told).await.unwrap();
    assert_eq!((message.variants.len(), message.active_variant_id), (1, None));
    story.tell("the store", "still works").await;
}

async fn a_refused_reroll_leaves_the_message(store: Arc<dyn Store>) {
    let story = Story::new(&store).await;
    let told = story.tell("u0", "a0").await;
    let rows = story.reroll(told).await;
    story.finish(&rows, Outcome::Refused, "").await;
    assert_eq!(story.message(told).await.unwrap().variants.len(), 1);
    assert_eq!(story.reads().await, ["u0", "a0"]);
}

async fn the_head_stays_where_the_reader_put_it(store: Arc<dyn Store>) {
    let story = Story::new(&store).await;
    let first = story.tell("u0", "a0").await;
    let (_, rows) = story.ask("u1").await;
    story.set_head(first).await;
    story.finish(&rows, Outcome::Complete, "a1").await;
    assert_eq!(story.head().await, Some(first));
    let rows = story.reroll(rows.message_id).await;
    story.finish(&rows, Outcome::Complete, "again").await;
    assert_eq!(story.head().await, Some(first));
}

async fn a_branch_is_another_child(store: Arc<dyn Store>) {
    let story = Story::new(&store).await;
    let first = story.tell("u0", "a0").await;
    story.tell("u1", "a1").await;
    let mut new = story.begin(story.reply(Some(first), "other")).await;
    let path: Vec<_> = new.path.iter().map(|beat| beat.content.as_str()).collect();
    assert_eq!(path, ["u0", "a0", "other"]);
    let rows = new.rows.take().unwrap();
    story.finish(&rows, Outcome::Complete, "a2").await;
    assert_eq!(story.reads().await, ["u0", "a0", "other", "a2"]);
    assert_eq!(story.message(rows.user_message_id.unwrap()).await.unwrap().parent_id, Some(first));
}

async fn a_reroll_sees_only_what_is_above_its_message(store: Arc<dyn Store>) {
    let story = Story::new(&store).await;
    story.tell("u0", "a0").await;
    let middle = story.tell("u1", "a1").await;
    story.tell("u2", "a2").await;
    let new = story.begin(Place::Reroll { message: MessageRef::Id(middle) }).await;
    let path: Vec<_> = new.path.iter().map(|beat| (beat.role, beat.content.as_str())).collect();
    assert_eq!(path, [(Role::User, "u0"), (Role::Assistant, "a0"), (Role::User, "u1")]);
    assert_eq!(new.rows.unwrap().message_id, middle);
}

async fn the_path_has_active_texts_only_and_only_as_much_as_can_matter(store: Arc<dyn Store>) {
    let story = Story::new(&store).await;
    let told = story.tell("u0", "a0").await;
    store.write_variant(&story.user, told, "edited", ALL).await.unwrap();
    let (new, rows) = story.ask("u1").await;
    assert_eq!(
        new.path.iter().map(|beat| beat.content.as_str()).collect::<Vec<_>>(),
        ["u0", "edited", "u1"]
    );
    story.finish(&rows, Outcome::Failed, "half").await;
    let below = story.begin(story.reply(Some(rows.message_id), "u2")).await;
    let path: Vec<_> = below.path.iter().map(|beat| beat.content.as_str()).collect();
    assert_eq!(path, ["u0", "edited", "u1", "u2"], "a message without an active text is left out");

    let (_, rows) = story.ask("u3").await;
    story.finish(&rows, Outcome::Complete, "").await;
    let (new, _) = story.ask("u4").await;
    assert!(new.path.iter().all(|beat| !beat.content.is_empty()), "{:?}", new.path);

    let story = Story::new(&store).await;
    let small = BotSettings { context_size: 10, ..BotSettings::demo() };
    let bot_id = Some(bot(&store, &story.user, small).await);
    for page in 0..10 {
        story.tell(&format!("question number {page}"), &format!("reply number {page}")).await;
    }
    let place = story.reply(None, "and now?");
    let Begun::New(new) =
        begun(&store, &story.user, &Begin { bot_id, ..begin(place) }).await.unwrap()
    else {
        panic!()
    };
    let chars: usize = new.path.iter().map(|beat| beat.content.len()).sum();
    assert!((50..=80).contains(&chars), "{:?}", new.path);
    assert_eq!(new.path.last().unwrap().content, "and now?");
    assert_eq!(new.path[new.path.len() - 2].content, "reply number 9");
    let place = story.reply(None, &"x".repeat(1_000));
    let Begun::New(new) =
        begun(&store, &story.user, &Begin { bot_id, ..begin(place) }).await.unwrap()
    else {
        panic!()
    };
    assert_eq!(new.path.len(), 1, "the newest is always there");
}

async fn one_of_fifty_begins_is_new(store: Arc<dyn Store>) {
    let story = Arc::new(Story::new(&store).await);
    let request = begin_as("same".parse().unwrap(), "one", story.reply(None, "u0"));
    let begins: Vec<_> = (0..50)
        .map(|_| {
            let (story, request) = (Arc::clone(&story), request.clone());
            tokio::spawn(async move { begun(&story.store, &story.user, &request).await.unwrap() })
        })
        .collect();
    let mut new = 0;
    for begun in begins {
        match begun.await.unwrap() {
            Begun::New(_) => new += 1,
            Begun::Existing(saved) => {
                assert_eq!((saved.status, saved.stream_id.as_str()), (Status::Streaming, "same"));
            }
        }
    }
    assert_eq!(new, 1);
    assert_eq!(store.read_tree(&story.user, story.id, ALL).await.unwrap().messages.len(), 2);
    let other = begin_as("same".parse().unwrap(), "two", story.reply(None, "u0"));
    assert_eq!(code(begun(&store, &story.user, &other).await), Code::StreamIdReused);
}

async fn two_turns_at_once_are_both_kept(store: Arc<dyn Store>) {
    let story = Story::new(&store).await;
    let parent = story.tell("u0", "a0").await;
    let turn = async |input: &str| {
        let rows = story.begin(story.reply(Some(parent), input)).await.rows.unwrap();
        story.finish(&rows, Outcome::Complete, input).await;
        rows.message_id
    };
    let (one, two) = tokio::join!(turn("one"), turn("two"));
    assert_eq!(store.read_tree(&story.user, story.id, ALL).await.unwrap().messages.len(), 6);
    assert!([Some(one), Some(two)].contains(&story.head().await));
}

async fn a_write_token_writes_once(store: Arc<dyn Store>) {
    let story = Story::new(&store).await;
    let (_, rows) = story.ask("u0").await;
    let first = story.finish(&rows, Outcome::Complete, "a0").await;
    assert_eq!(
        story.finish(&rows, Outcome::Failed, "other").await,
        first,
        "repeated it answers as the first time"
    );
    let token = story.write_token(&rows);
    assert!(first.is_by(&finish(&token, Outcome::Complete, "a0")), "who was first learns it");
    assert!(!first.is_by(&finish(&token, Outcome::Failed, "a0")), "and who was not");
    assert!(!first.is_by(&finish(&token, Outcome::Complete, "a0 and more")));
    assert_eq!(story.reads().await, ["u0", "a0"]);
    for guess in [String::new(), "0".repeat(64), Uuid::now_v7().to_string()] {
        let guess = finish(&guess.into(), Outcome::Complete, "x");
        assert_eq!(code(store.finish(&guess).await), Code::StreamNotFound);
    }
}

async fn what_was_deleted_cannot_be_finished(store: Arc<dyn Store>) {
    let story = Story::new(&store).await;
    let request = Begin { expires_at: Timestamp::UNIX_EPOCH, ..begin(story.reply(None, "u0")) };
    let new = story.begin_with(&request).await;
    let rows = new.rows.unwrap();
    store.delete_conversation(&story.user, story.id).await.unwrap();
    let late = finish(&story.write_token(&rows), Outcome::Complete, "late");
    assert_eq!(code(store.finish(&late).await), Code::StreamNotFound);
}

async fn a_generation_past_its_time_is_interrupted_and_may_still_be_finished(
    store: Arc<dyn Store>,
) {
    let story = Story::new(&store).await;
    let request = Begin { expires_at: Timestamp::UNIX_EPOCH, ..begin(story.reply(None, "u0")) };
    let new = story.begin_with(&request).await;
    let rows = new.rows.unwrap();
    assert_eq!(story.variant(&rows).await.unwrap().0, Status::Interrupted);
    let saved = store.find_stream(&story.user, &request.stream_id).await.unwrap().unwrap();
    assert_eq!(saved.status, Status::Interrupted);
    story.finish(&rows, Outcome::Complete, "late").await;
    assert_eq!(story.reads().await, ["u0", "late"]);
}

async fn a_reroll_in_two_steps(store: Arc<dyn Store>) {
    let story = Story::new(&store).await;
    let told = story.tell("u0", "a0").await;
    let announce = async || {
        store.announce_reroll(&story.user, &MessageRef::Id(told), Some(story.id)).await.unwrap()
    };
    let (one, two) = (announce().await, announce().await);
    assert_ne!(one.stream_id, two.stream_id);
    assert_eq!(story.message(told).await.unwrap().variants[1].status, Status::Pending);
    assert_eq!(story.reads().await, ["u0", "a0"]);
    let place = |variant_id| Place::Announced { variant_id, conversation_id: None };
    let wrong = begin_as(two.stream_id.clone(), "one", place(one.variant_id));
    assert_eq!(code(begun(&store, &story.user, &wrong).await), Code::VariantNotFound);
    let unannounced = begin_as(StreamId::random(), "one", place(one.variant_id));
    assert_eq!(code(begun(&store, &story.user, &unannounced).await), Code::VariantNotFound);
    let elsewhere = begin_as(one.stream_id.clone(), "one", story.reply(None, "u1"));
    assert_eq!(code(begun(&store, &story.user, &elsewhere).await), Code::StreamIdReused);

    let right = begin_as(one.stream_id.clone(), "one", place(one.variant_id));
    let new = story.begin_with(&right).await;
    assert_eq!(new.path.iter().map(|beat| beat.content.as_str()).collect::<Vec<_>>(), ["u0"]);
    let rows = new.rows.unwrap();
    assert_eq!((rows.variant_id, rows.message_id), (one.variant_id, told));
    assert!(matches!(begun(&store, &story.user, &right).await.unwrap(), Begun::Existing(_)));
    story.finish(&rows, Outcome::Complete, "another").await;
    assert_eq!(story.reads().await, ["u0", "another"]);
    let saved = store.find_stream(&story.user, &one.stream_id).await.unwrap().unwrap();
    assert!(saved.is_announced && saved.is_active && saved.content == "another");
    let question = store.read_tree(&story.user, story.id, ALL).await.unwrap().path[0];
    let refused = store.announce_reroll(&story.user, &MessageRef::Id(question), None).await;
    assert_eq!(code(refused), Code::NotRerollable);
}

async fn what_a_stream_wrote_is_found_whole(store: Arc<dyn Store>) {
    let story = Story::new(&store).await;
    let request = begin(story.reply(None, "u0"));
    let new = story.begin_with(&request).await;
    let rows = new.rows.unwrap();
    let finish = Finish {
        reasoning: "hm".to_owned(),
        ..finish(&story.write_token(&rows), Outcome::Failed, "half 🦊\n")
    };
    store.finish(&finish).await.unwrap();
    let saved = store.find_stream(&story.user, &request.stream_id).await.unwrap().unwrap();
    assert_eq!(
        (saved.id, saved.variant_id, saved.conversation_id),
        (rows.message_id, rows.variant_id, story.id)
    );
    assert_eq!((saved.content.as_str(), saved.reasoning.as_str()), ("half 🦊\n", "hm"));
    assert_eq!(
        (saved.usage, saved.error, saved.model),
        (finish.usage, finish.failure, Some(finish.model))
    );
    assert_eq!((saved.finish_reason, saved.bot.id), (finish.finish_reason, Some(new.bot.id)));
    assert_eq!((saved.user_message_id, saved.role), (rows.user_message_id, Role::Assistant));
    let by_stream = MessageRef::Stream(request.stream_id);
    let announced = store.announce_reroll(&story.user, &by_stream, None).await.unwrap();
    assert_eq!(announced.message_id, rows.message_id);
    let place = story.reply(None, "u1");
    let second = begin_as("temp-stream-7".parse().unwrap(), "one", place);
    let Begun::New(new) = begun(&store, &story.user, &second).await.unwrap() else { panic!() };
    let by_bare_name = MessageRef::Stream("7".parse().unwrap());
    let announced = store.announce_reroll(&story.user, &by_bare_name, None).await.unwrap();
    assert_eq!(announced.message_id, new.rows.unwrap().message_id);
}

async fn bots_are_resolved_in_order(store: Arc<dyn Store>) {
    let user = principal(Uuid::now_v7());
    let nowhere = || begin(Place::Nowhere);
    assert_eq!(code(begun(&store, &user, &nowhere()).await), Code::NoBot);
    let named = |name: &str, is_default| BotSettings {
        name: name.to_owned(),
        is_default,
        ..BotSettings::demo()
    };
    let answers = async |request: Begin| match begun(&store, &user, &request).await.unwrap() {
        Begun::New(new) => new.bot.settings.name,
        Begun::Existing(saved) => panic!("{saved:?}"),
    };
    let plain = bot(&store, &user, named("plain", false)).await;
    assert_eq!(answers(nowhere()).await, "plain");
    let default = bot(&store, &user, named("default", true)).await;
    bot(&store, &user, named("newer", false)).await;
    assert_eq!(answers(nowhere()).await, "default");
    bot(&store, &user, named("newer default", true)).await;
    assert_eq!(answers(nowhere()).await, "newer default");
    store.update_bot(&user, default, &named("default", true)).await.unwrap();
    assert_eq!(answers(nowhere()).await, "default");
    let bound = bot(&store, &user, named("bound", false)).await;
    let conversation_id = store.create_conversation(&user, "", Some(bound)).await.unwrap().id;
    let reply =
        || begin(Place::Reply { conversation_id, parent_id: None, input: Some("?".to_owned()) });
    assert_eq!(answers(reply()).await, "bound");
    assert_eq!(answers(Begin { bot_id: Some(plain), ..reply() }).await, "plain");
    store.delete_bot(&user, bound).await.unwrap();
    assert_eq!(answers(reply()).await, "default");
    let stranger = principal(Uuid::now_v7());
    let others = bot(&store, &stranger, named("others", true)).await;
    for wrong in [others, bound] {
        assert_eq!(
            code(begun(&store, &user, &Begin { bot_id: Some(wrong), ..reply() }).await),
            Code::BotNotFound
        );
        assert_eq!(
            code(store.create_conversation(&user, "", Some(wrong)).await),
            Code::BotNotFound
        );
    }
}

async fn nothing_of_others_is_there(store: Arc<dyn Store>) {
    let story = Story::new(&store).await;
    let (_, rows) = story.ask("u0").await;
    story.finish(&rows, Outcome::Complete, "a0").await;
    let before = store.read_tree(&story.user, story.id, ALL).await.unwrap();
    let stream_id = before.messages[1].variants[0].stream_id.clone().unwrap();
    let (message, variant) = (rows.message_id, rows.variant_id);
    let stranger = Story::new(&store).await.user;
    let no_conversation = Code::ConversationNotFound;
    let patch =
        ConversationPatch { title: Some("mine".to_owned()), ..ConversationPatch::default() };
    assert_eq!(code(store.read_tree(&stranger, story.id, ALL).await), no_conversation);
    assert_eq!(code(store.patch_conversation(&stranger, story.id, &patch).await), no_conversation);
    assert_eq!(code(store.delete_conversation(&stranger, story.id).await), no_conversation);
    assert_eq!(
        code(begun(&store, &stranger, &begin(story.reply(None, "x"))).await),
        no_conversation
    );
    for reference in [MessageRef::Id(message), MessageRef::Stream(stream_id.clone())] {
        let reroll = begin(Place::Reroll { message: reference.clone() });
        assert_eq!(code(begun(&store, &stranger, &reroll).await), Code::MessageNotFound);
        assert_eq!(
            code(store.announce_reroll(&stranger, &reference, None).await),
            Code::MessageNotFound
        );
    }
    assert_eq!(
        code(store.select_variant(&stranger, message, variant, ALL).await),
        Code::MessageNotFound
    );
    assert_eq!(
        code(store.write_variant(&stranger, message, "x", ALL).await),
        Code::MessageNotFound
    );
    assert_eq!(code(store.delete_message(&stranger, message).await), Code::MessageNotFound);
    assert!(store.find_stream(&stranger, &stream_id).await.unwrap().is_none());
    let bot_id = before.messages[1].variants[0].bot_id.unwrap();
    assert_eq!(code(store.read_bot(&stranger, bot_id).await), Code::BotNotFound);
    assert_eq!(
        code(store.update_bot(&stranger, bot_id, &BotSettings::demo()).await),
        Code::BotNotFound
    );
    assert_eq!(code(store.delete_bot(&stranger, bot_id).await), Code::BotNotFound);
    let key = store.put_key(&story.user, &new_key("demo", "", "theirs")).await.unwrap();
    let resealed = store.reseal_key(&stranger, key.id, "theirs", "mine").await;
    assert_eq!(code(resealed), Code::KeyNotFound);
    assert_eq!(code(store.delete_key(&stranger, key.id).await), Code::KeyNotFound);
    store.put_key(&stranger, &new_key("demo", "", "mine")).await.unwrap();
    assert_eq!(sealed_keys(&store, &stranger).await, [("".to_owned(), "mine".to_owned())]);
    assert_eq!(sealed_keys(&store, &story.user).await, [("".to_owned(), "theirs".to_owned())]);
    assert_eq!(store.list_keys(&story.user).await.unwrap(), [key]);
    assert_eq!(store.list_conversations(&stranger, &all()).await.unwrap().data.len(), 1);
    assert_eq!(store.list_bots(&stranger, &all()).await.unwrap().data.len(), 1);
    assert_eq!(store.read_tree(&story.user, story.id, ALL).await.unwrap(), before);
}

async fn edits_and_choices(store: Arc<dyn Store>) {
    let story = Story::new(&store).await;
    let told = story.tell("u0", "a0").await;
    let first = story.message(told).await.unwrap().active_variant_id.unwrap();
    let edited = store.write_variant(&story.user, told, "edited", ALL).await.unwrap();
    assert_eq!(edited.active_variant_id, Some(edited.variants[1].id));
    assert_eq!(edited.variants[1].status, Status::Complete);
    store.select_variant(&story.user, told, first, ALL).await.unwrap();
    assert_eq!(story.reads().await, ["u0", "a0"]);
    let rows = story.reroll(told).await;
    let running = store.select_variant(&story.user, told, rows.variant_id, ALL).await;
    assert_eq!(code(running), Code::GenerationRunning);
    let pending = store.announce_reroll(&story.user, &MessageRef::Id(told), None).await.unwrap();
    assert_eq!(
        code(store.select_variant(&story.user, told, pending.variant_id, ALL).await),
        Code::VariantNotFound
    );
    let nobodys = VariantId::try_from(999_999).unwrap();
    assert_eq!(
        code(store.select_variant(&story.user, told, nobodys, ALL).await),
        Code::VariantNotFound
    );
    story.finish(&rows, Outcome::Failed, "half").await;
    store.select_variant(&story.user, told, rows.variant_id, ALL).await.unwrap();
    assert_eq!(story.reads().await, ["u0", "half"], "even a failed one, if the reader likes it");
}

async fn deleting_takes_what_hangs_below(store: Arc<dyn Store>) {
    let story = Story::new(&store).await;
    let first = story.tell("u0", "a0").await;
    story.tell("u1", "a1").await;
    let (_, rows) = story.ask("u2").await;
    for above in [rows.message_id, rows.user_message_id.unwrap(), first] {
        assert_eq!(code(store.delete_message(&story.user, above).await), Code::GenerationRunning);
    }
    assert_eq!(
        code(store.delete_conversation(&story.user, story.id).await),
        Code::GenerationRunning
    );
    story.finish(&rows, Outcome::Complete, "a2").await;
    let second = store.read_tree(&story.user, story.id, ALL).await.unwrap().path[2];
    store.delete_message(&story.user, second).await.unwrap();
    assert_eq!(story.reads().await, ["u0", "a0"]);
    assert_eq!(store.read_tree(&story.user, story.id, ALL).await.unwrap().messages.len(), 2);
    let root = store.read_tree(&story.user, story.id, ALL).await.unwrap().path[0];
    store.delete_message(&story.user, root).await.unwrap();
    assert_eq!((story.head().await, story.reads().await.len()), (None, 0));
    story.tell("anew", "yes").await;
    store.delete_conversation(&story.user, story.id).await.unwrap();
    assert_eq!(code(store.read_tree(&story.user, story.id, ALL).await), Code::ConversationNotFound);
}

async fn a_long_story_can_be_deleted_from_its_root(store: Arc<dyn Store>) {
    let story = Story::new(&store).await;
    for page in 0..600 {
        story.tell(&format!("u{page}"), "a").await;
    }
    let root = store.read_tree(&story.user, story.id, ALL).await.unwrap().path[0];
    store.delete_message(&story.user, root).await.unwrap();
    assert!(story.reads().await.is_empty());
    store.delete_conversation(&story.user, story.id).await.unwrap();
}

async fn a_patch_changes_what_it_names(store: Arc<dyn Store>) {
    let story = Story::new(&store).await;
    let told = story.tell("u0", "a0").await;
    let bot_id = store.list_bots(&story.user, &all()).await.unwrap().data[0].id;
    let patch = async |patch: ConversationPatch| {
        store.patch_conversation(&story.user, story.id, &patch).await
    };
    let nothing = ConversationPatch::default;
    let patched =
        patch(ConversationPatch { title: Some("T".to_owned()), ..nothing() }).await.unwrap();
    assert_eq!((patched.title.as_str(), patched.bot_id, patched.head_id), ("T", None, Some(told)));
    let patched =
        patch(ConversationPatch { bot_id: Some(Some(bot_id)), ..nothing() }).await.unwrap();
    assert_eq!((patched.title.as_str(), patched.bot_id), ("T", Some(bot_id)));
    assert_eq!(
        patch(ConversationPatch { bot_id: Some(None), ..nothing() }).await.unwrap().bot_id,
        None
    );
    let other = Story::new(&store).await;
    let elsewhere = other.tell("u0", "a0").await;
    let wrong = patch(ConversationPatch { head_id: Some(elsewhere), ..nothing() }).await;
    assert_eq!(code(wrong), Code::MessageNotFound);
}

async fn lists_come_in_pages(store: Arc<dyn Store>) {
    let user = principal(Uuid::now_v7());
    for page in 0..5 {
        store.create_conversation(&user, &page.to_string(), None).await.unwrap();
        bot(&store, &user, BotSettings { name: page.to_string(), ..BotSettings::demo() }).await;
    }
    let mut cursor = Cursor { after: None, limit: 2 };
    let (mut titles, mut names) = (Vec::new(), Vec::new());
    loop {
        let page = store.list_conversations(&user, &cursor).await.unwrap();
        titles.extend(page.data.into_iter().map(|conversation| conversation.title));
        let Some(next) = page.next else { break };
        cursor.after = Some(next);
    }
    cursor.after = None;
    loop {
        let page = store.list_bots(&user, &cursor).await.unwrap();
        names.extend(page.data.into_iter().map(|bot| bot.settings.name));
        let Some(next) = page.next else { break };
        cursor.after = Some(next);
    }
    assert_eq!(
        (titles, names),
        (
            ["4", "3", "2", "1", "0"].map(str::to_owned).to_vec(),
            ["0", "1", "2", "3", "4"].map(str::to_owned).to_vec()
        )
    );
    cursor.after = Some("nonsense".to_owned());
    assert_eq!(code(store.list_conversations(&user, &cursor).await), Code::InvalidRequest);
    assert_eq!(code(store.list_bots(&user, &cursor).await), Code::InvalidRequest);
}

fn new_key(provider: &str, origin: &str, sealed: &str) -> NewKey {
    NewKey {
        provider: provider.to_owned(),
        base_url: Some(origin)
            .filter(|origin| !origin.is_empty())
            .map(|origin| format!("{origin}/v1")),
        last4: "1234".to_owned(),
        origin: origin.to_owned(),
        sealed: sealed.to_owned(),
    }
}

/// Origin and sealed form of the keys that a turn gets which belongs nowhere, sorted.
async fn sealed_keys(store: &Arc<dyn Store>, user: &Principal) -> Vec<(String, String)> {
    let Begun::New(new) = begun(store, user, &begin(Place::Nowhere)).await.unwrap() else {
        panic!()
    };
    let mut keys: Vec<_> = new.keys.into_iter().map(|key| (key.origin, key.sealed)).collect();
    keys.sort_unstable();
    keys
}

async fn a_key_is_kept_replaced_and_comes_with_each_turn(store: Arc<dyn Store>) {
    let story = Story::new(&store).await;
    assert!(store.list_keys(&story.user).await.unwrap().is_empty());
    assert!(story.ask("u0").await.0.keys.is_empty());
    let before = clock::now();
    let first = store.put_key(&story.user, &new_key("demo", "", "one")).await.unwrap();
    assert_eq!((first.provider.as_str(), first.base_url.as_deref()), ("demo", None));
    assert_eq!(first.last4, "1234");
    assert!((first.created_at - before).abs() < jiff::SignedDuration::from_secs(60));
    let other = store.put_key(&story.user, &new_key("other", "", "other")).await.unwrap();
    let key =
        |new: &New| new.keys.iter().map(|key| (key.id, key.sealed.clone())).collect::<Vec<_>>();
    let (new, rows) = story.ask("u1").await;
    assert_eq!(key(&new), [(first.id, "one".to_owned())], "those of the bot's provider");
    story.finish(&rows, Outcome::Complete, "a1").await;
    let reroll = story.begin(Place::Reroll { message: MessageRef::Id(rows.message_id) }).await;
    assert_eq!(key(&reroll), [(first.id, "one".to_owned())]);

    let again = NewKey { last4: "5678".to_owned(), ..new_key("demo", "", "two") };
    let second = store.put_key(&story.user, &again).await.unwrap();
    assert_eq!(second.last4, "5678");
    assert_eq!(sealed_keys(&store, &story.user).await, [(String::new(), "two".to_owned())]);
    let mut listed = store.list_keys(&story.user).await.unwrap();
    listed.sort_by_key(|key| key.id);
    let mut expected = [second.clone(), other.clone()];
    expected.sort_by_key(|key| key.id);
    assert_eq!(listed, expected);

    store.delete_key(&story.user, second.id).await.unwrap();
    assert_eq!(code(store.delete_key(&story.user, second.id).await), Code::KeyNotFound);
    assert!(sealed_keys(&store, &story.user).await.is_empty());
    assert_eq!(store.list_keys(&story.user).await.unwrap(), [other]);
}

async fn keys_are_told_apart_by_origin(store: Arc<dyn Store>) {
    let story = Story::new(&store).await;
    for (origin, sealed) in
        [("https://a.example", "a"), ("https://b.example", "b"), ("https://a.example", "c")]
    {
        let key = store.put_key(&story.user, &new_key("demo", origin, sealed)).await.unwrap();
        assert_eq!(key.base_url, Some(format!("{origin}/v1")));
    }
    let expected = [("https://a.example", "c"), ("https://b.example", "b")];
    let expected = expected.map(|(origin, sealed)| (origin.to_owned(), sealed.to_owned()));
    assert_eq!(sealed_keys(&store, &story.user).await, expected);
}

async fn a_key_is_sealed_anew_unless_it_was_replaced(store: Arc<dyn Store>) {
    let story = Story::new(&store).await;
    let key = store.put_key(&story.user, &new_key("demo", "", "old")).await.unwrap();
    store.reseal_key(&story.user, key.id, "old", "new").await.unwrap();
    let expected = |sealed: &str| [(String::new(), sealed.to_owned())];
    assert_eq!(sealed_keys(&store, &story.user).await, expected("new"));
    let listed = store.list_keys(&story.user).await.unwrap();
    assert_eq!(listed, std::slice::from_ref(&key), "nothing else changes");
    let late = store.reseal_key(&story.user, key.id, "old", "late").await;
    assert_eq!(code(late), Code::KeyNotFound);
    assert_eq!(sealed_keys(&store, &story.user).await, expected("new"));
    store.delete_key(&story.user, key.id).await.unwrap();
    assert_eq!(code(store.reseal_key(&story.user, key.id, "new", "x").await), Code::KeyNotFound);
}

async fn there_are_only_so_many_keys(store: Arc<dyn Store>) {
    let story = Story::new(&store).await;
    let put = async |at: usize| {
        let key = new_key("demo", &format!("https://{at}.example"), "sealed");
        store.put_key(&story.user, &key).await
    };
    for at in 0..KEYS_MAX {
        put(at).await.unwrap();
    }
    assert_eq!(code(put(KEYS_MAX).await), Code::TooManyKeys);
    put(0).await.unwrap();
    assert_eq!(store.list_keys(&story.user).await.unwrap().len(), KEYS_MAX);
    assert_eq!(sealed_keys(&store, &story.user).await.len(), KEYS_MAX, "all come with a turn");
}

async fn what_is_too_large_is_not_read_nor_changed(store: Arc<dyn Store>) {
    let story = Story::new(&store).await;
    let (user, told) = (&story.user, story.tell("u0", "a0").await);
    let first = story.message(told).await.unwrap().active_variant_id.unwrap();
    // Bytes count, and not letters; and each variant for the rest that it has.
    let len = 2 * VARIANT_LEN + 10;
    store.write_variant(user, told, "größer", len).await.unwrap();
    let before = story.message(told).await.unwrap();
    assert_eq!(code(store.select_variant(user, told, first, len - 1).await), Code::StoryTooLarge);
    let more = store.write_variant(user, told, "x", len + VARIANT_LEN).await;
    assert_eq!(code(more), Code::StoryTooLarge);
    assert_eq!(story.message(told).await.unwrap(), before);
    let all = len + VARIANT_LEN + 2;
    assert_eq!(code(store.read_tree(user, story.id, all - 1).await), Code::StoryTooLarge);
    assert_eq!(store.read_tree(user, story.id, all).await.unwrap().messages.len(), 2);
    store.select_variant(user, told, first, len).await.unwrap();
}

/// Runs every test of the contract on the stores that `$new` makes.
macro_rules! on {
    ($store:ident: $new:expr; $($test:ident)*) => {
        mod $store {
            use super::*;

            $(
                #[tokio::test]
                async fn $test() {
                    let (store, _keep) = $new;
                    super::$test(Arc::new(store)).await;
                }
            )*
        }
    };
}

macro_rules! on_every_store {
    ($($test:ident)*) => {
        on! { sqlite: {
            let folder = tempfile::TempDir::new().unwrap();
            (SqliteStore::open(&folder.path().join("relay.db"), None).unwrap(), folder)
        }; $($test)* }
        on! { sqlite_in_memory: (SqliteStore::open_in_memory(None).unwrap(), ()); $($test)* }
        on! { postgres: {
            let url = Database::shared().await.url("relay").parse().unwrap();
            (FunctionStore::new(PostgresFunctions::new(&url).unwrap(), None), ())
        }; $($test)* }
        on! { postgrest: {
            let port = Postgrest::shared().await;
            let url = format!("http://127.0.0.1:{port}").parse().unwrap();
            (FunctionStore::new(PostgrestFunctions::new(&url, None).unwrap(), None), ())
        }; $($test)* }
    };
}

on_every_store! {
    a_streaming_variant_changes_nothing_that_is_shown
    each_ending_does_what_the_table_says
    a_failure_without_text_leaves_nothing_unless_something_hangs_on_it
    a_refused_turn_leaves_nothing
    a_head_on_a_reply_that_comes_to_nothing_moves_up
    a_refused_turn_does_not_go_back_to_what_was_deleted
    a_variant_that_was_chosen_though_late_may_fail_without_text
    a_refused_reroll_leaves_the_message
    the_head_stays_where_the_reader_put_it
    a_branch_is_another_child
    a_reroll_sees_only_what_is_above_its_message
    the_path_has_active_texts_only_and_only_as_much_as_can_matter
    one_of_fifty_begins_is_new
    two_turns_at_once_are_both_kept
    a_write_token_writes_once
    what_was_deleted_cannot_be_finished
    a_generation_past_its_time_is_interrupted_and_may_still_be_finished
    a_reroll_in_two_steps
    what_a_stream_wrote_is_found_whole
    bots_are_resolved_in_order
    nothing_of_others_is_there
    edits_and_choices
    what_is_too_large_is_not_read_nor_changed
    deleting_takes_what_hangs_below
    a_long_story_can_be_deleted_from_its_root
    a_patch_changes_what_it_names
    lists_come_in_pages
    a_key_is_kept_replaced_and_comes_with_each_turn
    keys_are_told_apart_by_origin
    a_key_is_sealed_anew_unless_it_was_replaced
    there_are_only_so_many_keys
}
