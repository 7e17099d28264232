//! Lists, page by page.

use std::future::Future;

use crate::error::Error;
use crate::store::{Cursor, Page};
use crate::text;

/// Entries of a page where the request names no number, and the most it can name: what one answer should hold.
const LIMIT: u32 = 50;
const LIMIT_MAX: u32 = 200;

/// How many long entries are read at once: a usual page.
const PART: u32 = LIMIT;

/// With how much text, in bytes, a page of long entries is long enough, however many more were asked for.
const LONG_LEN: usize = 4 << 20;

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

/// A page of entries that may be long, of which `len` says how long one is: read part by part, and ended early once it is long
/// enough.
///
/// # Errors
/// Those of `read`.
pub(super) async fn long_page<T, F>(
    cursor: Cursor,
    read: impl Fn(Cursor) -> F,
    len: impl Fn(&T) -> usize,
) -> Result<Page<T>, Error>
where
    F: Future<Output = Result<Page<T>, Error>>,
{
    let Cursor { after, limit } = cursor;
    let mut page = Page { data: Vec::new(), next: after };
    let (mut left, mut text_len) = (limit, 0);
    while left > 0 && text_len < LONG_LEN {
        let part = read(Cursor { after: page.next, limit: left.min(PART) }).await?;
        left = left.saturating_sub(u32::try_from(part.data.len()).unwrap_or(u32::MAX));
        text_len += part.data.iter().map(&len).sum::<usize>();
        page.data.extend(part.data);
        page.next = part.next;
        if page.next.is_none() {
            break;
        }
    }
    Ok(page)
}

#[cfg(test)]
mod tests {
    use std::future::ready;

    use super::*;

    /// A store of entries of that length, of which each is the cursor of those behind it.
    async fn page(entries: &[usize], cursor: Cursor) -> Page<usize> {
        let read = |cursor: Cursor| {
            assert!(cursor.limit <= PART);
            let from = cursor.after.map_or(0, |after| after.parse().unwrap());
            let to = entries.len().min(from + cursor.limit as usize);
            let next = (to < entries.len()).then(|| to.to_string());
            ready(Ok(Page { data: entries[from..to].to_vec(), next }))
        };
        long_page(cursor, read, |entry| *entry).await.unwrap()
    }

    #[tokio::test]
    async fn a_page_holds_what_was_asked_for_or_much_text() {
        let cursor = |after: Option<&str>, limit| Cursor { after: after.map(str::to_owned), limit };
        let short = page(&[1; 160], cursor(None, 120)).await;
        assert_eq!((short.data.len(), short.next.as_deref()), (120, Some("120")));
        let rest = page(&[1; 160], cursor(short.next.as_deref(), 120)).await;
        assert_eq!((rest.data.len(), rest.next), (40, None));
        assert_eq!(page(&[1; 50], cursor(None, 200)).await.data.len(), 50);
        assert!(page(&[], cursor(None, 200)).await.data.is_empty());
        let long = page(&[256 << 10; 200], cursor(None, 200)).await;
        assert_eq!((long.data.len(), long.next.as_deref()), (50, Some("50")));
        let one = page(&[LONG_LEN; 3], cursor(None, 1)).await;
        assert_eq!((one.data.len(), one.next.as_deref()), (1, Some("1")));
    }
}
