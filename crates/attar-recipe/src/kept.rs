//! What planning a step computed and running it uses again.
//!
//! A step keeps one value under [`Kept::keep`] while it plans and asks for it by its type while it runs. It may not be there: a
//! sweep runs steps that nobody planned. Whether it still holds for the model as it is then, the step must see itself.

use std::{any::Any, collections::BTreeMap, fmt, sync::Arc};

/// Values by the step that kept them.
#[derive(Clone, Default)]
pub(crate) struct Kept {
    step: usize,
    values: BTreeMap<usize, Arc<dyn Any + Send + Sync>>,
}

impl Kept {
    /// The step at `step` in its variant is planned or run next.
    pub(crate) fn at(&mut self, step: usize) {
        self.step = step;
    }

    /// Keeps what the step that is planned computed.
    pub(crate) fn keep(&mut self, value: impl Any + Send + Sync) {
        self.values.insert(self.step, Arc::new(value));
    }

    /// What the step that is run kept when it was planned.
    pub(crate) fn get<T: Any + Send + Sync>(&self) -> Option<Arc<T>> {
        self.values.get(&self.step)?.clone().downcast().ok()
    }
}

impl fmt::Debug for Kept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Kept({:?})", self.values.keys())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_finds_what_it_kept_and_nothing_else() {
        let mut kept = Kept::default();
        kept.at(1);
        kept.keep("of step 1".to_owned());
        kept.at(2);
        kept.keep(2u64);
        assert_eq!(kept.get::<u64>().as_deref(), Some(&2));
        assert!(kept.get::<String>().is_none());
        kept.at(1);
        assert_eq!(kept.get::<String>().as_deref().map(String::as_str), Some("of step 1"));
        kept.at(0);
        assert!(kept.get::<String>().is_none());
    }
}
