//! Stories as their users read, change and delete them, and nobody else.

use super::*;

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

on_every_store! {
    nothing_of_others_is_there
    edits_and_choices
    what_is_too_large_is_not_read_nor_changed
    deleting_takes_what_hangs_below
    a_long_story_can_be_deleted_from_its_root
    a_patch_changes_what_it_names
    lists_come_in_pages
}
