//! The colours of a button in a brand's colour. The button has enough contrast with every colour.
//!
//! Contrast is WCAG 2.2's (relative luminance of sRGB): 4.5 for the button's words (success criterion 1.4.3), 3 between
//! the button and the card it stands on (1.4.11).

use std::fmt;

use shared::config::Colour;

/// Background of the card in `page.css`, light scheme.
const LIGHT_CARD: Colour = Colour { rgb: [0xff, 0xff, 0xff] };
/// Background of the card in `page.css`, dark scheme.
const DARK_CARD: Colour = Colour { rgb: [0x1a, 0x1f, 0x26] };

const WHITE: Colour = Colour { rgb: [0xff; 3] };
const BLACK: Colour = Colour { rgb: [0; 3] };

/// The lowest contrast ratio between the button's edge and the card.
const MIN_EDGE_CONTRAST: f64 = 3.0;

/// A button's three colours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Button {
    back: Colour,
    edge: Colour,
    text: Colour,
}

impl Button {
    /// Fills the button with `accent` unchanged. Moves the edge's colour towards black or white until it has the lowest
    /// contrast ratio with `card`.
    fn on(card: Colour, accent: Colour) -> Self {
        let away = if contrast(card, WHITE) > contrast(card, BLACK) { WHITE } else { BLACK };
        let seen = |edge: &Colour| contrast(*edge, card) >= MIN_EDGE_CONTRAST;
        let edge = (0..=20).map(|step| mixed(accent, away, f64::from(step) / 20.0)).find(seen).unwrap_or(away);
        // The two contrast ratios always multiply to 21, so the larger one is at least 4.58.
        let text = if contrast(accent, WHITE) >= contrast(accent, BLACK) { WHITE } else { BLACK };
        Self { back: accent, edge, text }
    }
}

impl fmt::Display for Button {
    /// Writes the custom properties of `page.css`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, Colour { rgb }) in [("accent", self.back), ("edge", self.edge), ("on-accent", self.text)] {
            write!(f, "--{name}:#{};", hex::encode(rgb))?;
        }
        Ok(())
    }
}

/// The style rules that follow `page.css`.
pub fn style(accent: Colour) -> String {
    let (light, dark) = (Button::on(LIGHT_CARD, accent), Button::on(DARK_CARD, accent));
    format!(":root{{{light}}}@media (prefers-color-scheme:dark){{:root{{{dark}}}}}")
}

fn mixed(from: Colour, to: Colour, share: f64) -> Colour {
    let channel = |at: usize| {
        let (from, to) = (f64::from(from.rgb[at]), f64::from(to.rgb[at]));
        nearest((to - from).mul_add(share, from))
    };
    Colour { rgb: [channel(0), channel(1), channel(2)] }
}

/// Rounds to the nearest value of a channel. `value` is between 0 and 255.
fn nearest(value: f64) -> u8 {
    (0..=u8::MAX).find(|channel| f64::from(*channel) + 0.5 > value).unwrap_or(u8::MAX)
}

fn contrast(one: Colour, other: Colour) -> f64 {
    let (one, other) = (luminance(one), luminance(other));
    (one.max(other) + 0.05) / (one.min(other) + 0.05)
}

fn luminance(colour: Colour) -> f64 {
    let linear = |channel: u8| {
        let c = f64::from(channel) / 255.0;
        if c <= 0.04045 { c / 12.92 } else { ((c + 0.055) / 1.055).powf(2.4) }
    };
    let [r, g, b] = colour.rgb.map(linear);
    0.0722f64.mul_add(b, 0.2126f64.mul_add(r, 0.7152 * g))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn contrast_is_wcags() {
        let grey = Colour { rgb: [0x76; 3] };
        assert!((contrast(WHITE, BLACK) - 21.0).abs() < 1e-9);
        assert!((contrast(WHITE, grey) - 4.54).abs() < 0.01, "#767676 is the lightest grey for text on white");
    }

    #[test]
    fn a_colour_with_enough_contrast_is_not_changed() {
        let blue = Colour { rgb: [0x1d, 0x4e, 0xd8] };
        assert_eq!(Button::on(LIGHT_CARD, blue), Button { back: blue, edge: blue, text: WHITE });
        let yellow = Colour { rgb: [0xff, 0xd6, 0x0a] };
        assert_eq!(Button::on(DARK_CARD, yellow), Button { back: yellow, edge: yellow, text: BLACK });
        assert_ne!(Button::on(LIGHT_CARD, yellow).edge, yellow, "yellow on white needs a darker edge");
    }

    #[test]
    fn the_cards_are_those_of_the_style_sheet() {
        let css = include_str!("page.css");
        let card = |Colour { rgb }: Colour| format!("--card:#{}", hex::encode(rgb));
        let (light, dark) = css.split_once("prefers-color-scheme:dark").expect("two schemes");
        assert!(light.contains(&card(LIGHT_CARD)), "{light}");
        assert!(dark.contains(&card(DARK_CARD)), "{dark}");
    }

    proptest! {
        #[test]
        fn every_colour_has_enough_contrast(rgb in any::<[u8; 3]>()) {
            for card in [LIGHT_CARD, DARK_CARD] {
                let button = Button::on(card, Colour { rgb });
                prop_assert!(contrast(button.edge, card) >= MIN_EDGE_CONTRAST, "{button:?}");
                prop_assert!(contrast(button.back, button.text) >= 4.5, "{button:?}");
            }
        }
    }
}
