//! A value in all rounds: its median, the least and the greatest.

/// A value in all rounds. What is no number in all of them is not told.
#[derive(Debug)]
pub(crate) struct Spread {
    least: f64,
    median: f64,
    greatest: f64,
}

impl Spread {
    pub(crate) fn of(values: impl IntoIterator<Item = f64>) -> Self {
        let mut values: Vec<_> = values.into_iter().collect();
        let median = median(&mut values);
        let (least, greatest) = (values.first(), values.last());
        Self { least: or_none(least.copied()), median, greatest: or_none(greatest.copied()) }
    }

    pub(crate) fn median(&self) -> f64 {
        self.median
    }

    pub(crate) fn whole(&self) -> String {
        if self.median.is_finite() { format!("{:.0}", self.median) } else { String::new() }
    }

    pub(crate) fn short(&self) -> String {
        if self.median.is_finite() { format!("{:.2}", self.median) } else { String::new() }
    }

    /// With the least and the greatest in parentheses.
    pub(crate) fn long(&self) -> String {
        let Self { least, median, greatest } = self;
        if !median.is_finite() {
            return String::new();
        }
        format!("{median:.2} ({least:.2}–{greatest:.2})")
    }
}

/// What is not there is no number, and is not told.
pub(crate) fn or_none(value: Option<f64>) -> f64 {
    value.unwrap_or(f64::NAN)
}

/// The median, of values which are sorted then.
pub(crate) fn median(values: &mut [f64]) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    or_none(values.get(values.len() / 2).copied())
}
