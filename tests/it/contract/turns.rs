//! How a turn begins: where, after what, with which bot, and once.

use super::*;

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

on_every_store! {
    a_branch_is_another_child
    a_reroll_sees_only_what_is_above_its_message
    the_path_has_active_texts_only_and_only_as_much_as_can_matter
    one_of_fifty_begins_is_new
    two_turns_at_once_are_both_kept
    a_reroll_in_two_steps
    bots_are_resolved_in_order
}
