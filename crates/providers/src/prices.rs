//! What calls cost.

use std::collections::BTreeMap;

use machine::Usage;

use crate::Completion;

/// The price of a model, in millionths of a US dollar for a million tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Price {
    /// Of a million tokens sent.
    pub input: u64,
    /// Of a million tokens received.
    pub output: u64,
}

/// Prices by `provider/model`, else by `model`. A model without a price costs nothing.
#[derive(Debug, Clone, Default)]
pub struct Prices(pub BTreeMap<String, Price>);

impl Prices {
    /// What a completion used, with its cost rounded up.
    #[must_use]
    pub fn usage(&self, provider: &str, model: &str, completion: &Completion) -> Usage {
        let price = self.0.get(&format!("{provider}/{model}")).or_else(|| self.0.get(model)).copied();
        let price = price.unwrap_or_default();
        let part = |tokens: u64, price: u64| u128::from(tokens) * u128::from(price);
        let cost = part(completion.tokens_in, price.input) + part(completion.tokens_out, price.output);
        Usage {
            tokens_in: completion.tokens_in,
            tokens_out: completion.tokens_out,
            cost_microusd: u64::try_from(cost.div_ceil(1_000_000)).unwrap_or(u64::MAX),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cost_is_tokens_times_price() {
        let prices = Prices(BTreeMap::from([
            ("m".to_owned(), Price { input: 3_000_000, output: 15_000_000 }),
            ("p/m".to_owned(), Price { input: 1_000_000, output: 0 }),
        ]));
        let completion = Completion { text: String::new(), tokens_in: 1000, tokens_out: 100 };
        assert_eq!(prices.usage("x", "m", &completion).cost_microusd, 3000 + 1500);
        assert_eq!(prices.usage("p", "m", &completion).cost_microusd, 1000);
        assert_eq!(prices.usage("x", "free", &completion).cost_microusd, 0);
    }
}
