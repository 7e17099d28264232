//! Lists, page by page.

use std::future::Future;

use crate::error::Error;
use crate::store::{Cursor, Page};
use crate::text;

/// Entries of a page where the request names no number, and the most it can name: what one answer should hold.
const LIMIT: u32 = 50;
const LIMIT_MAX: u32 = 200;

/// How many long entries are read at once.
const PART: u32 = 16;

/// How long the text of a page of long entries is at most as JSON, in bytes, however many more were asked for; of one entry,
/// as long as it is.
const LONG_LEN: usize = 4 << 20;

/// How much text is held while such a page is read, in bytes, if no entry has more than that: what the page has already, and a
/// part of the longest.
pub(super) const fn long_read_len(entry_len_max: usize) -> u64 {
    (LONG_LEN + PART as usize * entry_len_max) as u64
}

/// `?cursor=` and `?limit=` of a list.
#[derive(serde::Deserialize)]
pub(super) struct Listing {
    cursor: Option<String>,
    limit: Option<u32>,
}

impl From<Listing> for Cursor {
    fn from(listing: Listing) -> Self {
        // No page gives out what is no text; some databases cannot even be asked about it.
        let after = listing.cursor.map(|cursor| text::clean(&cursor).into_owned());
        Self { after, limit: listing.limit.unwrap_or(LIMIT).clamp(1, LIMIT_MAX) }
    }
}

/// A page of entries that may be long, of which `long` is what makes them so: read part by part, and ended early where it would
/// be too long.
///
/// # Errors
/// Those of `read`.
pub(super) async fn long_page<T, F>(
    cursor: Cursor,
    read: impl Fn(Cursor) -> F,
    long: impl Fn(&T) -> &str,
) -> Result<Page<T>, Error>
where
    F: Future<Output = Result<Page<T>, Error>>,
{
    let Cursor { after, limit } = cursor;
    let mut page = Page { data: Vec::new(), next: after };
    let (mut left, mut room) = (limit, LONG_LEN);
    while left > 0 {
        let asked = left.min(PART);
        let mut part = read(Cursor { after: page.next.clone(), limit: asked }).await?;
        let fitting = fitting(part.data.iter().map(&long), &mut room);
        let is_full = fitting < part.data.len();
        if is_full {
            // One is sent however long it is.
            let limit = fitting.max(usize::from(page.data.is_empty())) as u32;
            if limit == 0 {
                break;
            }
            // Where the next page begins is the store's to say.
            drop(part);
            part = read(Cursor { after: page.next, limit }).await?;
        }
        left -= asked;
        page.data.extend(part.data);
        page.next = part.next;
        if is_full || page.next.is_none() {
            break;
        }
    }
    Ok(page)
}

/// How many of those texts there is room for, one behind another, as JSON. What they take is taken.
fn fitting<'a>(texts: impl Iterator<Item = &'a str>, room: &mut usize) -> usize {
    let mut fits = |text: &str| {
        let rest = room.checked_sub(json_len(text));
        *room = rest.unwrap_or_default();
        rest.is_some()
    };
    texts.take_while(|text| fits(text)).count()
}

/// How long a text is as JSON at most, in bytes.
fn json_len(text: &str) -> usize {
    let escaped = |byte| match byte {
        b'"' | b'\\' => 2,
        0..0x20 => 6,
        _ => 1,
    };
    text.bytes().map(escaped).sum()
}

#[cfg(test)]
mod tests {
    use std::future::ready;

    use super::*;

    /// A store of those texts, of which each is the cursor of those behind it.
    async fn page(texts: &[&str], cursor: Cursor) -> Page<String> {
        let read = |cursor: Cursor| {
            assert!(cursor.limit <= PART);
            let from = cursor.after.map_or(0, |after| after.parse().unwrap());
            let to = texts.len().min(from + cursor.limit as usize);
            let next = (to < texts.len()).then(|| to.to_string());
            let data = texts[from..to].iter().map(|text| (*text).to_owned()).collect();
            ready(Ok(Page { data, next }))
        };
        long_page(cursor, read, |text| text).await.unwrap()
    }

    /// How many are on a page, and where the next begins.
    async fn counted(texts: &[&str], after: Option<&str>, limit: u32) -> (usize, Option<String>) {
        let cursor = Cursor { after: after.map(str::to_owned), limit };
        let page = page(texts, cursor).await;
        (page.data.len(), page.next)
    }

    #[tokio::test]
    async fn a_page_holds_what_was_asked_for_or_much_text() {
        let next = |at: usize| Some(at.to_string());
        assert_eq!(counted(&["x"; 160], None, 120).await, (120, next(120)));
        assert_eq!(counted(&["x"; 160], Some("120"), 120).await, (40, None));
        assert_eq!(counted(&["x"; 50], None, 200).await, (50, None));
        assert_eq!(counted(&[], None, 200).await, (0, None));
        let long = "x".repeat(256 << 10);
        assert_eq!(counted(&[long.as_str(); 200], None, 200).await, (16, next(16)));
        assert_eq!(counted(&[long.as_str(); 15], None, 200).await, (15, None));
        let escaped = "\u{1}".repeat(256 << 10);
        assert_eq!(counted(&[escaped.as_str(); 200], Some("3"), 200).await, (2, next(5)));
        let longest = "x".repeat(LONG_LEN + 1);
        assert_eq!(counted(&[longest.as_str(); 3], None, 200).await, (1, next(1)));
        assert_eq!(counted(&["x", &longest, "x"], None, 200).await, (1, next(1)));
        assert_eq!(counted(&["x", &longest, "x"], Some("1"), 200).await, (1, next(2)));
    }

    #[test]
    fn nothing_is_longer_as_json_than_it_counts() {
        let all: String = ('\0'..='\u{1ff}').chain("🦊\u{2028}".chars()).collect();
        for text in [all.as_str(), "", "\"\\", "\u{1}"] {
            assert!(serde_json::to_string(text).unwrap().len() <= json_len(text) + 2);
        }
    }
}
