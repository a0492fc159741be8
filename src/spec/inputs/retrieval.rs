//! A small retrieval set, written for tfcheck: short questions, and for each of them a passage that answers it and one about
//! the same subject that does not.

use std::sync::LazyLock;

/// The questions.
const QUERIES: [&str; 12] = [
    "How do I keep bread from going stale?",
    "Why does the moon seem to change its shape?",
    "What should I do if my bicycle chain falls off?",
    "How can a small company save electricity?",
    "Which plants grow well without much sun?",
    "When does water boil below one hundred degrees?",
    "How does a vaccine protect the body?",
    "Why do cats purr?",
    "How is paper recycled?",
    "What makes a violin sound different from a flute?",
    "How do I back up the photos on my phone?",
    "Why are bridges built with gaps between their parts?",
];

/// Two passages for each question, in its order: the answer, then the other one.
const PASSAGES: [&str; 24] = [
    "A loaf stays soft for longer in a cloth bag or a closed box at room temperature; in a refrigerator it dries out.",
    "Bakers start before dawn so that the first loaves and rolls are on the shelves when the shop opens.",
    "The sun lights one half of the moon, and we see more or less of that half as the moon moves around us.",
    "The first crew that walked on the moon brought home more than twenty kilograms of rock and dust.",
    "Push the rear derailleur forward to slacken it, lay the links over the smallest ring and turn the pedals slowly.",
    "The city will paint new cycle lanes on the main street and close it to cars on Sundays.",
    "Switching off idle machines, better insulation and efficient lamps lower the power bill of an office.",
    "The power station on the river was closed last year after sixty years of service.",
    "Ferns, ivy and hostas thrive in shade, so they suit the north side of a house.",
    "Sunflowers turn their young heads towards the light during the day.",
    "On a high mountain the air pressure is low, and the liquid bubbles at a lower temperature than at the coast.",
    "The kettle in the kitchen holds two litres and switches itself off.",
    "It shows the immune system a harmless part of a germ, so that antibodies are ready when the real one comes.",
    "The clinic moved to a new building beside the station, where parking is free for patients.",
    "The animals make that low rumbling noise when they are content, and also to calm themselves when they are hurt.",
    "A kitten needs a warm place to sleep, fresh water and a box with clean litter.",
    "Old newspapers are soaked to a pulp, cleaned of ink, pressed flat and dried to new sheets.",
    "The novel was printed in a small edition on heavy, cream-coloured sheets.",
    "Every instrument adds overtones of its own to a note, and our ears hear that mixture as its colour.",
    "The orchestra rehearses on Tuesday evenings in the hall of the old school.",
    "Copy the pictures to a computer or let the device upload them to online storage each night.",
    "The new model has a brighter screen and three lenses on its back.",
    "Steel and concrete expand in the heat of summer, and the joints leave them room to do so.",
    "The ferry stopped running when the road across the river was opened.",
];

/// The texts of the set: the questions, then the passages.
pub(crate) static TEXTS: LazyLock<Vec<String>> =
    LazyLock::new(|| QUERIES.iter().chain(&PASSAGES).map(|text| (*text).to_owned()).collect());

/// The number of questions, which are the first of [`TEXTS`].
pub(crate) const QUESTIONS: usize = QUERIES.len();

/// The passage that answers a question, counted among the passages.
pub(crate) fn answer(question: usize) -> usize {
    question * (PASSAGES.len() / QUERIES.len())
}
