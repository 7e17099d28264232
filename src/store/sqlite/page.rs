//! Pages of lists.

use crate::store::Page;

/// A page of at most `limit` of `data`, which has one more if there is another page.
pub(super) fn page<T>(mut data: Vec<T>, limit: u32, cursor: impl Fn(&T) -> String) -> Page<T> {
    let limit = limit as usize;
    let has_more = data.len() > limit;
    data.truncate(limit);
    let next = data.last().filter(|_| has_more).map(cursor);
    Page { data, next }
}
