"""The mid-level patterns: their rules, and constructed sentences that keep or break them."""

from typing import NamedTuple

from ..factors.pattern_shares import Rule


class Pattern(NamedTuple):
    """A pattern of contexts: what it is, its rule, and pairs of sentences that keep and break it at the same word."""

    meaning: str
    rule: Rule
    sentences: tuple[tuple[str, str], ...] = ()


def _is_repeated(before: str, target: str, after: str) -> bool:
    word = target.strip().lower()
    return len(word) > 3 and word.isalpha() and word in before.lower().split()


PATTERNS = {
    "parentheses": Pattern(
        "the target is inside parentheses",
        r"\([^()]*«[^»()]*»",
        (
            ("The hero (played by a very «young» man) leaves.", "The hero , played by a very «young» man , leaves."),
            ("I saw it last week (it was the «first» time).", "I saw it last week . It was the «first» time ."),
            (
                "The music (which I «liked» a lot) is by a friend.",
                "The music , which I «liked» a lot , is by a friend.",
            ),
            (
                "Her sister (a nurse in a small «town») comes home.",
                "Her sister , a nurse in a small «town» , comes home.",
            ),
            ("The story is short (about an «hour») and simple.", "The story is short , about an «hour» , and simple."),
            ("My friends (and most «people») hated the end.", "My friends , and most «people» , hated the end."),
            ("The killer (we never see his «face») is back.", "The killer , we never see his «face» , is back."),
            (
                "It was made in France (but not in «Paris») years ago.",
                "It was made in France , but not in «Paris» , years ago.",
            ),
            (
                "The actor (who was great in his last «movie») is bad.",
                "The actor , who was great in his last «movie» , is bad.",
            ),
            (
                "He tells a joke (the only good «one») at the end.",
                "He tells a joke , the only good «one» , at the end.",
            ),
        ),
    ),
    "quotation": Pattern(
        "the target is after an opening quotation mark that is not closed",
        lambda before, target, after: before.count('"') % 2 == 1 and '"' not in target,
        (
            ('He says "we have to leave this «place» now".', "He says we have to leave this «place» now ."),
            ('She asks "what is the real «reason» for it".', "She asks what is the real «reason» for it ."),
            (
                'They call it "a story of true «love»" on the cover.',
                "They call it a story of true «love» on the cover .",
            ),
            ('The sign says "no one gets «out» alive".', "The sign says no one gets «out» alive ."),
            ('My brother said "that was a long «movie»".', "My brother said that was a long «movie» ."),
            ('He shouts "give me back my «money»" again.', "He shouts give me back my «money» again ."),
            ('One critic wrote "the best «film» of the year".', "One critic wrote the best «film» of the year ."),
            ('She answers "I do not know the «man»" and goes.', "She answers I do not know the «man» and goes ."),
            ('The song "dancing in the dark «night»" is nice.', "The song dancing in the dark «night» is nice ."),
            ('The boy says "my father is a «doctor»" to her.', "The boy says my father is a «doctor» to her ."),
        ),
    ),
    "negation": Pattern(
        "the target follows a negation in the same clause",
        r"(?i)\b(?:not|never|\w+n't)\b[^.!?;]{0,25}«[^».!?]*»",
        (
            ("I did not really «like» the ending.", "I did really «like» the ending."),
            ("You will never «see» this again.", "You will soon «see» this again."),
            ("He doesn't «know» what to do.", "He does «know» what to do."),
            ("They can't even «make» a good film.", "They can even «make» a good film."),
            ("She could not «find» her sister.", "She could always «find» her sister."),
            ("It doesn't «get» better after that.", "It does «get» better after that."),
            ("We didn't «have» much fun.", "We did «have» much fun."),
            ("I would not «recommend» it to my friends.", "I would surely «recommend» it to my friends."),
            ("The plot does not «make» sense.", "The plot does always «make» sense."),
            ("You don't «need» to watch the first part.", "You do «need» to watch the first part."),
        ),
    ),
    "condition": Pattern(
        "the target is in a clause that begins with if you",
        r"(?i)\bif you [^.!?,]*«",
        (
            ("If you want a good «movie» , see it.", "Since they want a good «movie» , see it."),
            ("If you like to laugh at bad «acting» , rent it.", "She does like to laugh at bad «acting» , rent it."),
            ("If you have two «hours» to spare , watch it.", "They do have two «hours» to spare , watch it."),
            ("If you are a fan of the «book» , stay away.", "He is still a fan of the «book» , stay away."),
            ("If you enjoy this kind of «humor» , try it.", "We all enjoy this kind of «humor» , try it."),
            ("If you need something to «watch» , this is fine.", "People need something to «watch» , this is fine."),
            ("If you have not seen the «first» one , do so.", "They have not seen the «first» one , do so."),
            ("If you know what to «expect» , it is fun.", "The two know what to «expect» , it is fun."),
        ),
    ),
    "adjective list": Pattern(
        "the target ends a list of three words with commas, as in the paper's consecutive adjectives",
        r"\w+, \w+,(?: and)?« \w+»",
        (
            ("The songs are loud, fast, «silly» and fun.", "The songs that we hear are very «silly» and fun."),
            ("A dark, slow, «sad» story.", "A man tells a «sad» story."),
            ("The jokes are old, tired, and «stupid» .", "The jokes that he tells are «stupid» ."),
            ("It is a warm, sweet, «funny» film.", "It is by far his most «funny» film."),
            ("The acting is stiff, weak, and «boring» .", "The acting of the two is «boring» ."),
            ("She is smart, strong, and «beautiful» .", "She is the one who is «beautiful» ."),
            ("A cheap, ugly, «violent» mess.", "A film that is a «violent» mess."),
            ("The town is small, quiet, and «strange» .", "The town in the north is «strange» ."),
        ),
    ),
    "repetition": Pattern(
        "the target occurs before in the same context",
        _is_repeated,
        (
            ("A good story about a «story» .", "A good book about a «story» ."),
            ("The house on the hill is a dark «house» .", "The place on the hill is a dark «house» ."),
            ("He loves music and lives for «music» .", "He loves films and lives for «music» ."),
            ("Her mother was like his «mother» .", "Her father was like his «mother» ."),
            ("The killer was hunting the other «killer» .", "The doctor was hunting the other «killer» ."),
            ("Every scene is a long «scene» .", "Every shot is a long «scene» ."),
            ("One girl looks for another «girl» .", "One man looks for another «girl» ."),
            ("From town to town , every «town» is the same.", "From place to place , every «town» is the same."),
        ),
    ),
}


class Variation(NamedTuple):
    """A form of the list of adjectives of the paper's table 4: what was changed, the sentence, and the paper's code."""

    change: str
    sentence: str
    published: float


TABLE_4 = (
    Variation(
        "original list of adjectives", "a film full of exciting, happy, brilliant, fun and sometimes «silly» songs", 9.5
    ),
    Variation(
        "other positive adjectives", "a film full of lovely, lively, charming, sweet and sometimes «silly» songs", 9.2
    ),
    Variation(
        "negative adjectives", "a film full of terrible, painful, annoying, boring and sometimes «silly» songs", 8.2
    ),
    Variation("first three adjectives removed", "a film full of fun and sometimes «silly» songs", 7.8),
    Variation("neutral adjectives", "a film full of natural, short, electric, modern and sometimes «silly» songs", 6.2),
    Variation("sentence without the pattern", "the man starts the game with one of his «silly» songs", 0.0),
    Variation("new sentence with the pattern", "they call it new, bold and «beautiful»", 7.9),
)
"""The row with masked adjectives is left out: the demo models have no unknown token."""
