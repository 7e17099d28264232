//! Whole numbers as JSON has them: 2 and 2.0 are one number there, and some languages write all of theirs with a point.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, Unexpected, Visitor};

/// Up to here each whole number is a float of its own.
const EXACT_MAX: f64 = 9_007_199_254_740_991.0;

/// The whole number that `number` is, if it is one.
pub(crate) fn whole(number: f64) -> Option<i64> {
    (number.fract() == 0.0 && number.abs() <= EXACT_MAX).then_some(number as i64)
}

/// A count, or `None` for null; for serde's `deserialize_with`.
pub(crate) fn count<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u32>, D::Error> {
    Ok(Option::<Count>::deserialize(deserializer)?.map(|Count(count)| count))
}

struct Count(u32);

impl<'de> Deserialize<'de> for Count {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Counts;

        impl Visitor<'_> for Counts {
            type Value = Count;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "a whole number from 0 to {}", u32::MAX)
            }

            fn visit_u64<E: Error>(self, number: u64) -> Result<Count, E> {
                let count = u32::try_from(number).map(Count);
                count.map_err(|_| E::invalid_value(Unexpected::Unsigned(number), &self))
            }

            fn visit_i64<E: Error>(self, number: i64) -> Result<Count, E> {
                match u64::try_from(number) {
                    Ok(number) => self.visit_u64(number),
                    Err(_) => Err(E::invalid_value(Unexpected::Signed(number), &self)),
                }
            }

            fn visit_f64<E: Error>(self, number: f64) -> Result<Count, E> {
                match whole(number) {
                    Some(number) => self.visit_i64(number),
                    None => Err(E::invalid_value(Unexpected::Float(number), &self)),
                }
            }
        }

        deserializer.deserialize_u32(Counts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_float_is_a_whole_number_where_it_is_one_for_certain() {
        assert_eq!(whole(2.0), Some(2));
        assert_eq!(whole(-0.0), Some(0));
        assert_eq!(whole(EXACT_MAX), Some((1 << 53) - 1));
        for other in [1.5, EXACT_MAX + 1.0, f64::NAN, f64::INFINITY, -1e300] {
            assert_eq!(whole(other), None, "{other}");
        }
    }

    #[test]
    fn counts_are_whole_and_not_below_none() {
        let read = |json: &str| count(&mut serde_json::Deserializer::from_str(json));
        assert_eq!(read("7").unwrap(), Some(7));
        assert_eq!(read("7.0").unwrap(), Some(7));
        assert_eq!(read("4294967295.0").unwrap(), Some(u32::MAX));
        assert_eq!(read("null").unwrap(), None);
        for bad in ["-1", "-1.0", "0.5", "4294967296", "4294967296.0", "\"7\"", "[7]", "1e300"] {
            let told = read(bad).unwrap_err().to_string();
            assert!(told.contains("expected a whole number from 0 to 4294967295"), "{bad}: {told}");
        }
    }
}
