//! How a turn ends, and what is left of it in the story.

use jiff::Timestamp;

use super::*;

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
    a_write_token_writes_once
    what_was_deleted_cannot_be_finished
    a_generation_past_its_time_is_interrupted_and_may_still_be_finished
    what_a_stream_wrote_is_found_whole
}
