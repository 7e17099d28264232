//! Users' own keys.

use storytellr_relay::store::KEYS_MAX;

use super::*;

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

on_every_store! {
    a_key_is_kept_replaced_and_comes_with_each_turn
    keys_are_told_apart_by_origin
    a_key_is_sealed_anew_unless_it_was_replaced
    there_are_only_so_many_keys
}
