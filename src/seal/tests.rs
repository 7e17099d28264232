//! Sealed keys: what opens and what does not, and the form that they have in databases.

use proptest::prelude::*;
use uuid::Uuid;

use super::*;

/// Thirty-two bytes each, in base64.
const FIRST: &str = "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=";
const SECOND: &str = "AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI=";

fn keys(pairs: &[(&str, &str)]) -> MasterKeys {
    let pairs: Vec<_> = pairs.iter().map(|(id, key)| format!("{id}:{key}")).collect();
    MasterKeys::parse(&pairs.join(",")).unwrap()
}

fn binding<'a>(user: u128, provider: &'a str, origin: &'a str) -> Binding<'a> {
    Binding { user: UserId(Uuid::from_u128(user)), provider, origin }
}

fn seal(keys: &MasterKeys, binding: &Binding<'_>) -> String {
    keys.seal(&SecretString::from("sk-canary"), binding).unwrap()
}

#[test]
fn what_was_sealed_opens_for_the_same_and_for_nothing_else() {
    let keys = keys(&[("k1", FIRST)]);
    let own = binding(1, "custom", "https://a.example");
    let sealed = seal(&keys, &own);
    assert!(sealed.starts_with("v1.k1.") && !sealed.contains("canary"));
    let opened = keys.open(&sealed, &own).unwrap();
    assert_eq!((opened.key.expose_secret(), opened.is_outdated), ("sk-canary", false));
    assert_ne!(seal(&keys, &own), sealed, "no two are alike");
    for other in [
        binding(2, "custom", "https://a.example"),
        binding(1, "openai", "https://a.example"),
        binding(1, "custom", "https://b.example"),
        binding(1, "custom", ""),
        // The same letters, cut elsewhere.
        binding(1, "customhttps://a", ".example"),
        binding(1, "customhttps://a.example", ""),
        binding(1, "", "customhttps://a.example"),
    ] {
        let unopened = keys.open(&sealed, &other).unwrap_err();
        assert_eq!(unopened, Unopened::NotAuthentic, "{other:?}");
    }
}

#[test]
fn every_master_key_opens_and_the_newest_seals() {
    let own = binding(1, "openai", "");
    let before = keys(&[("old", FIRST)]);
    let during = keys(&[("new", SECOND), ("old", FIRST)]);
    let after = keys(&[("new", SECOND)]);
    let sealed = seal(&before, &own);
    let opened = during.open(&sealed, &own).unwrap();
    assert!(opened.is_outdated);
    let sealed_anew = during.seal(&opened.key, &own).unwrap();
    assert!(sealed_anew.starts_with("v1.new."));
    assert!(!during.open(&sealed_anew, &own).unwrap().is_outdated);
    assert_eq!(after.open(&sealed_anew, &own).unwrap().key.expose_secret(), "sk-canary");
    let unknown = Unopened::UnknownMasterKey("old".to_owned());
    assert_eq!(after.open(&sealed, &own).unwrap_err(), unknown);
    // Another key under the old id, and a sealed form that was given the new one's.
    let reused = keys(&[("old", SECOND)]);
    assert_eq!(reused.open(&sealed, &own).unwrap_err(), Unopened::NotAuthentic);
    let relabelled = sealed.replace(".old.", ".new.");
    let same_key = keys(&[("new", FIRST)]);
    assert_eq!(same_key.open(&relabelled, &own).unwrap_err(), Unopened::NotAuthentic);
}

#[test]
fn what_has_no_sealed_form_is_told_apart() {
    let (keys, own) = (keys(&[("k1", FIRST)]), binding(1, "openai", ""));
    let sealed = seal(&keys, &own);
    for unreadable in [
        "",
        "v1",
        "v1.k1",
        "sk-canary",
        "v1.k1.AAAA",
        "v1..AAAA",
        "v1.k\n1.AAAA",
        &sealed.replace("v1.", "v2."),
        &format!("{sealed}="),
        &format!("{sealed}."),
        &format!(" {sealed}"),
    ] {
        let unopened = keys.open(unreadable, &own).unwrap_err();
        assert_eq!(unopened, Unopened::Unreadable, "{unreadable}");
    }
    // A nonce, and less than a tag.
    let short = format!("v1.k1.{}", URL_SAFE_NO_PAD.encode([0; NONCE_LEN + 15]));
    assert_eq!(keys.open(&short, &own).unwrap_err(), Unopened::NotAuthentic);
}

/// The form as it is in databases, made by libsodium. If this fails, keys that an older version sealed do not open any more.
#[test]
fn a_sealed_key_of_the_first_version_opens() {
    let sealed = "v1.k1.AAECAwQFBgcICQoLDA0ODxAREhMUFRYXC7v25vz_tvqaf1UVZ5_5zlSO6vrQJlYMhA";
    let opened = keys(&[("k1", FIRST)]).open(sealed, &binding(1, "custom", "https://a.example"));
    assert_eq!(opened.unwrap().key.expose_secret(), "sk-canary");
}

#[test]
fn master_keys_are_read_as_tools_write_them() {
    let unpadded = FIRST.trim_end_matches('=');
    let keys = keys(&[("k-2_x", SECOND), ("k1", unpadded)]);
    assert_eq!(keys.ids().collect::<Vec<_>>(), ["k-2_x", "k1"]);
    let debug = format!("{keys:?}");
    assert!(debug.contains("k1") && !debug.contains("1, 1") && !debug.contains("AQEB"), "{debug}");
    let made = new_pair("dev").unwrap();
    assert_eq!(
        MasterKeys::parse(&format!(" {made} ,")).unwrap().ids().collect::<Vec<_>>(),
        ["dev"]
    );
    assert_ne!(new_pair("dev").unwrap(), made);
}

#[test]
fn every_wrong_pair_is_named_without_its_secret() {
    let long_id = "x".repeat(33);
    for (pairs, numbers) in [
        (",".to_owned(), vec![]),
        (FIRST.to_owned(), vec![1]),
        (format!(":{FIRST}"), vec![1]),
        (format!("k.1:{FIRST}"), vec![1]),
        (format!("{long_id}:{FIRST}"), vec![1]),
        (format!("{FIRST}:k1"), vec![1]),
        ("k1:AQEB".to_owned(), vec![1]),
        (format!("k1:{FIRST}{FIRST}"), vec![1]),
        (format!("k1:{}", FIRST.replace("AQEB", "!!!!")), vec![1]),
        (format!("k1:{FIRST},k1:{SECOND}"), vec![2]),
        (format!("k1:{FIRST},k2:{FIRST}"), vec![2]),
        (format!("k1,k2:{SECOND},k3:x,k2:{FIRST}"), vec![1, 3, 4]),
    ] {
        let faults = MasterKeys::parse(&pairs).unwrap_err();
        assert_eq!(faults.len(), numbers.len().max(1), "{pairs}: {faults:?}");
        for (fault, number) in faults.iter().zip(numbers) {
            assert!(fault.starts_with(&format!("pair {number} ")), "{pairs}: {fault}");
        }
        assert!(!faults.join("").contains("AQEB"), "{faults:?}");
    }
}

fn word() -> impl Strategy<Value = String> {
    "[a-c:/.]{0,6}"
}

proptest! {
    #[test]
    fn any_key_comes_back_whole(key in "\\PC{0,300}", user: u128, provider in word(), origin in word()) {
        let (keys, own) = (keys(&[("k1", FIRST)]), binding(user, &provider, &origin));
        let sealed = keys.seal(&SecretString::from(key.as_str()), &own).unwrap();
        let opened = keys.open(&sealed, &own).unwrap();
        prop_assert_eq!(opened.key.expose_secret(), key.as_str());
    }

    #[test]
    fn nothing_that_was_changed_opens(at: prop::sample::Index, bit in 0_u8..8) {
        let (keys, own) = (keys(&[("k1", FIRST)]), binding(1, "openai", ""));
        let sealed = seal(&keys, &own);
        let text = sealed.strip_prefix("v1.k1.").unwrap();
        let mut bytes = URL_SAFE_NO_PAD.decode(text).unwrap();
        let at = at.index(bytes.len());
        bytes[at] ^= 1 << bit;
        let changed = format!("v1.k1.{}", URL_SAFE_NO_PAD.encode(bytes));
        prop_assert_eq!(keys.open(&changed, &own).unwrap_err(), Unopened::NotAuthentic);
    }

    #[test]
    fn no_two_bindings_are_authenticated_alike(
        one in (0_u128..3, word(), word()),
        other in (0_u128..3, word(), word()),
        ids in (word(), word()),
    ) {
        let data = |(user, provider, origin): &(u128, String, String), id: &str| {
            binding(*user, provider, origin).associated_data(id)
        };
        let is_same = one == other && ids.0 == ids.1;
        prop_assert_eq!(data(&one, &ids.0) == data(&other, &ids.1), is_same);
    }

    #[test]
    fn no_text_is_too_strange(sealed in "(v1\\.)?(k1\\.)?\\PC{0,100}") {
        let keys = keys(&[("k1", FIRST)]);
        prop_assert!(keys.open(&sealed, &binding(1, "openai", "")).is_err());
    }
}
