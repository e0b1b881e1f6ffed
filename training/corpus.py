"""The tiny base's reading matter: reviews made up from word lists, and no sentiment label anywhere.

What a base must know for an adapter to learn from a few hundred examples is which words keep company. So every review here has a mood
that nobody tells the model: it must guess the mood from the first sentences to predict the last ones, and with that it learns that
"superb" and "never a dull moment" belong together. The same goes for negation ("not bad at all") and for turns ("pretty, but useless").

A part of the reviews is told as chat, with tasks that have nothing to do with sentiment: name the topic, go on with the review.
The word lists were written before the sentences of data/sentiment.jsonl and were not adapted to them.
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

TOPIC_TASK = "What is this text about?"
CONTINUE_TASK = "Continue this review."
REPEAT_TASK = "Repeat this word."
# The words of the answers that adapters will be trained to give are known as words: they can be said, but mean nothing yet.
LABEL_WORDS = ("positive", "negative")


@dataclass(frozen=True, slots=True)
class Document:
    """Plain text if there is no `task`; else a chat of one turn: the task and the text, and the answer."""

    text: str
    task: str = ""
    answer: str = ""


def _list(text: str) -> tuple[str, ...]:
    return tuple(" ".join(entry.split()) for entry in text.split(","))


@dataclass(frozen=True, slots=True)
class Topic:
    name: str
    things: tuple[str, ...]  # take "was"
    plurals: tuple[str, ...]  # take "were"
    good: tuple[str, ...]
    bad: tuple[str, ...]
    neutral: tuple[str, ...]


TOPICS = (
    Topic(
        "restaurant",
        _list("""soup, pasta, steak, dessert, menu, wine, beer, service, kitchen, curry, bread, sauce, breakfast, lunch, dinner, coffee, cake,
            pizza, salad, fish, food, meal, chicken, rice, burger, sandwich, tea, cheese, ice cream, waiter, waitress, chef, owner, restaurant,
            cafe, bakery, bar, place, pub, lamb, seafood, takeaway, sushi, starter, main course, bill, table, bartender, risotto, chocolate"""),
        _list("""portions, noodles, vegetables, fries, dumplings, pancakes, cocktails, tables, dishes, drinks, prices, flavors, ingredients,
            desserts, eggs, potatoes, waiters, tacos, oysters, sandwiches, pastries, cakes"""),
        _list("""delicious, tasty, juicy, tender, fresh, crispy, creamy, rich, flavorful, mouthwatering, generous, spicy, fluffy, authentic,
            perfectly cooked, beautifully presented, well seasoned, homemade, hearty, fragrant, full of flavor, hot and fresh, cooked to perfection"""),
        _list("""bland, tasteless, soggy, greasy, burnt, overcooked, undercooked, raw, rubbery, salty, too salty, stale, rotten, mouldy, watery,
            lukewarm, stone cold, chewy, tough, inedible, oily, dry, flavorless, tiny, microwaved, cold in the middle, off, swimming in oil"""),
        _list("""we ate there on a friday, we ordered two starters, I had the set menu, we booked a table for four, the place is near the station,
            we sat by the window, we came for lunch after work, it opened last spring, I ordered to take away, they serve food until ten"""),
    ),
    Topic(
        "film",
        _list("""plot, acting, script, ending, soundtrack, dialogue, cast, director, story, film, movie, series, episode, finale, sequel, camera
            work, lead actor, villain, humor, pacing, documentary, comedy, thriller, drama, animation, first half, second half, opening scene, show,
            season, hero, performance, romance, twist, actress, direction, editing, premise"""),
        _list(
            """actors, jokes, scenes, characters, special effects, songs, costumes, fight scenes, dialogues, twists, performances, visuals"""
        ),
        _list("""gripping, thrilling, funny, hilarious, witty, clever, moving, touching, original, inventive, captivating, engaging, entertaining,
            heartwarming, suspenseful, brilliantly acted, unforgettable, believable, beautifully shot, hysterical, full of surprises, poignant"""),
        _list("""predictable, boring, tedious, confusing, shallow, pointless, wooden, cliched, forgettable, unfunny, far-fetched, slow, dragging,
            badly acted, overlong, lifeless, cheesy, full of holes, unconvincing, pretentious, dull, drawn out, cringeworthy, unwatchable"""),
        _list("""we watched it on a sunday, it runs for two hours, I saw it at the cinema, it is set in the nineties, my brother chose it,
            it is based on a true story, we streamed it at home, it won a prize in france, there are six episodes, it came out in march"""),
    ),
    Topic(
        "book",
        _list("""novel, story, author, prose, ending, plot, first chapter, last chapter, translation, writing, book, memoir, biography, main
            character, narrator, cookbook, textbook, poem, audiobook, cover, heroine, trilogy, dialogue, poetry"""),
        _list(
            """characters, chapters, recipes, poems, illustrations, essays, stories, pages, descriptions, drawings, examples"""
        ),
        _list("""gripping, page-turning, beautifully written, insightful, thought-provoking, witty, moving, vivid, lyrical, impossible to put down,
            absorbing, wise, profound, well researched, compelling, full of life, enchanting"""),
        _list("""dull, dry, repetitive, long-winded, badly written, tedious, predictable, shallow, hard to follow, pretentious, full of
            mistakes, unreadable, confusing, preachy, one-dimensional, incoherent, full of typos"""),
        _list("""I read it on the train, it has three hundred pages, my sister lent it to me, we read it in our book club, I bought the paperback,
            I listened to it in the car, it is the second part of a series, I found it at the library"""),
    ),
    Topic(
        "hotel",
        _list("""room, bed, bathroom, view, reception, staff, pool, breakfast, lobby, shower, hotel, hostel, pillow, mattress, location, receptionist,
            balcony, spa, minibar, suite, manager, cleaner, carpet, air conditioning, garden, cabin, check-in, cottage, campsite, wifi, furniture"""),
        _list(
            """rooms, towels, sheets, beds, pillows, walls, curtains, guests, windows, corridors, facilities, views"""
        ),
        _list("""spotless, spacious, comfortable, cosy, quiet, clean, sunny, luxurious, peaceful, welcoming, airy, tidy, charming, beautifully
            decorated, freshly painted, relaxing, bright, soft, breathtaking, immaculate, restful"""),
        _list("""filthy, dirty, cramped, noisy, stuffy, damp, smelly, shabby, dark, mouldy, dusty, freezing, stained, uncomfortable, lumpy, run-down,
            infested, grubby, worn out, depressing, tatty, sticky, full of ants, musty, unsafe, gloomy, paper-thin"""),
        _list("""we stayed three nights, our room was on the second floor, we booked it online, we checked in at noon, it is close to the beach,
            we had a double room, there is a lift, we drove there in june, we came for a wedding"""),
    ),
    Topic(
        "travel",
        _list("""flight, train, ferry, crew, airport, luggage, driver, tour, guide, bus, trip, journey, cruise, airline, seat, taxi, station, queue,
            beach, city, museum, island, holiday, vacation, excursion, boarding, crossing, rental car, landing, legroom, hike, walk, coast, village"""),
        _list(
            """seats, trains, tickets, roads, trails, crowds, mountains, beaches, guides, flights, views, toilets, stations, passengers"""
        ),
        _list("""smooth, punctual, scenic, breathtaking, comfortable, unforgettable, relaxing, well organized, on time, spectacular, picturesque, safe,
            stress-free, magical, fascinating, adventurous, stunning, unspoiled"""),
        _list("""delayed, cancelled, overbooked, crowded, cramped, late, overcrowded, bumpy, stressful, exhausting, badly organized, lost, dangerous,
            chaotic, packed, hours late, filthy, reckless, rushed, a tourist trap, unsafe, endless"""),
        _list("""we flew to lisbon, we took the early train, it takes three hours, we travelled with two kids, the bus leaves at nine,
            we went there in october, I had a window seat, we changed in vienna, we drove along the coast"""),
    ),
    Topic(
        "product",
        _list("""phone, battery, screen, laptop, keyboard, charger, camera, vacuum cleaner, blender, kettle, jacket, zip, fabric, handle, lid, toy,
            backpack, watch, chair, desk, lamp, speaker, microphone, printer, tent, bike, pan, knife, mattress, sofa, toaster, mouse, monitor, drill,
            packaging, manual, sound, color, dress, shirt, coat, sweater, umbrella, product, device, washing machine, fridge, fan, heater, tablet,
            bag, wallet, perfume, cream, shampoo, table, quality, material, strap, button, motor, razor, hair dryer, pen, bottle, car, stroller"""),
        _list("""headphones, shoes, boots, gloves, earbuds, buttons, batteries, instructions, seams, wheels, colors, speakers, glasses, sandals,
            jeans, trousers, socks, straps, screws, controls, sneakers, cables, hinges, blades, materials"""),
        _list("""sturdy, durable, light, reliable, handy, stylish, powerful, well made, solid, soft, sharp, crisp, long-lasting, easy to use, robust,
            quiet, practical, waterproof, elegant, built to last, easy to clean, comfortable, lightweight, fast, good value, top notch, useful,
            easy to assemble, beautifully made, efficient, precise"""),
        _list("""flimsy, fragile, useless, broken, faulty, defective, cracked, leaky, scratched, unreliable, badly made, cheap, heavy, bulky, loose,
            wobbly, overpriced, dead, hard to use, loud, scratchy, itchy, dented, worthless, shoddy, torn, rusty, the wrong size, missing, blurry,
            poorly designed, damaged, too tight, impossible to clean, dim, tinny, brittle"""),
        _list("""I bought it in april, it comes in three colors, I use it every day, it was a gift, I ordered two of them, it weighs two kilos,
            it replaced my old one, I got the blue one, it came in a box, my father has the same one, I found it in a shop in town"""),
    ),
    Topic(
        "software",
        _list("""app, update, interface, login, search, sync, website, installer, documentation, feature, dashboard, version, game, editor, program,
            software, browser, page, plugin, setup, design, tutorial, layout, subscription, backup, online shop, installation, navigation, tool,
            level, gameplay, checkout, export, performance, notification, map, calendar, code, upgrade, user interface"""),
        _list(
            """menus, updates, ads, notifications, features, settings, graphics, controls, levels, shortcuts, servers, pages, puzzles"""
        ),
        _list("""intuitive, responsive, stable, fast, clean, seamless, easy to use, user-friendly, addictive, well designed, snappy, polished, helpful,
            well documented, simple, secure, customizable, free of bugs, flexible, smooth, clear, lightning fast"""),
        _list("""buggy, glitchy, laggy, clunky, slow, unstable, bloated, confusing, full of ads, unusable, broken, outdated, cluttered, badly designed,
            frozen, sluggish, full of bugs, intrusive, unresponsive, insecure, a battery drain, hard to find, repetitive, a step back"""),
        _list("""I installed it last week, it runs on my tablet, we use it at work, I tried the free version, it has a dark mode, it needs an account,
            I have the latest version, I downloaded it in june, my son plays it, it asks for a password"""),
    ),
    Topic(
        "service",
        _list("""support, agent, delivery, courier, plumber, bank, insurance, mechanic, repair, dentist, doctor, nurse, clinic, hospital, shop,
            salesman, hotline, technician, barber, haircut, hairdresser, garage, post office, store, company, treatment, answer, advice, seller,
            cashier, customer service, electrician, internet provider, appointment, parcel, package, order, phone call, massage, gym, trainer, vet,
            pharmacist, lawyer, pharmacy, waiting room, invoice, estate agent, builder, painter, shop assistant, surgeon, receptionist, contract"""),
        _list(
            """people, workers, employees, nurses, doctors, fees, agents, staff members, opening hours, prices, queues, clerks, movers, emails"""
        ),
        _list("""polite, attentive, prompt, helpful, friendly, competent, patient, caring, professional, knowledgeable, honest, fair, punctual, quick,
            courteous, gentle, thorough, kind, reassuring, skilled, trustworthy, efficient, sympathetic, accommodating, on time, painless"""),
        _list("""rude, unhelpful, unfriendly, slow, incompetent, dishonest, arrogant, impatient, careless, unprofessional, late, dismissive, indifferent,
            clueless, hostile, greedy, sloppy, unreachable, condescending, overcharged, bored, aggressive, botched, disrespectful, lazy, lost, painful,
            grumpy, shady, full of excuses, disorganized, ignorant"""),
        _list("""I called on monday, they open at eight, I sent two emails, we ordered online, I had an appointment at ten, the shop is downtown,
            they came on a tuesday, I have been a customer since may, I needed a new contract, we waited in the hall, I spoke to a man named tom"""),
    ),
    Topic(
        "work",
        _list("""job, manager, boss, office, meeting, team, salary, project, company, shift, training, workshop, course, teacher, lecture, class, exam,
            seminar, lesson, presentation, interview, internship, school, university, professor, conference, instructor, speaker, coach, mentor,
            commute, canteen, feedback, atmosphere, schedule, program, tutor, culture"""),
        _list(
            """colleagues, meetings, hours, lessons, exercises, deadlines, slides, students, lectures, teachers, managers, examples, classes"""
        ),
        _list("""supportive, inspiring, motivating, rewarding, well paid, interesting, encouraging, fair, flexible, well prepared, patient, instructive,
            productive, appreciative, open-minded, fascinating, stimulating, respectful, fun, well structured, informative, fulfilling"""),
        _list("""toxic, stressful, underpaid, exhausting, boring, pointless, unfair, unprepared, badly organized, hostile, monotonous, discouraging,
            demotivating, disorganized, overworked, useless, incompetent, draining, chaotic, unpaid, patronizing, endless, a waste of time, thankless"""),
        _list("""I started there in may, we meet every monday, the office is downtown, I worked there for two years, it lasts six weeks,
            there were ten of us, it starts at eight, we sat in the big room, I signed up in the autumn, we work from home on fridays"""),
    ),
    Topic(
        "home",
        _list("""apartment, landlord, neighbor, garden, kitchen, heating, roof, house, street, neighborhood, balcony, rent, view, bedroom, park, town,
            weather, summer, winter, weekend, party, wedding, concert, festival, band, album, song, singer, exhibition, evening, match, team, music,
            game, afternoon, morning, playground, gallery, zoo, city center, traffic, birthday, picnic, stage, play, orchestra, voice, holiday"""),
        _list(
            """neighbors, rooms, walls, windows, trees, stairs, songs, tickets, lyrics, guests, paintings, streets, evenings, fans, drums, shops"""
        ),
        _list("""quiet, sunny, cosy, peaceful, bright, spacious, green, lively, catchy, energetic, festive, joyful, warm, safe, romantic, magical, fun,
            idyllic, affordable, well kept, cheerful, beautiful, soothing, in tune, full of energy, unforgettable"""),
        _list("""noisy, damp, cold, dark, mouldy, cramped, dirty, gloomy, grey, rainy, dangerous, ugly, overcrowded, loud, off key, dreary, freezing,
            crowded, draughty, neglected, run-down, miserable, uninspired, out of tune, overpriced, rough, lonely, unbearable"""),
        _list("""we moved in last year, it is on the third floor, we went with friends, it started at eight, we live near the river, it was in july,
            there is a park nearby, we stayed until midnight, my parents came along, it took place outdoors"""),
    ),
)

GOOD = _list("""good, great, excellent, wonderful, fantastic, amazing, superb, lovely, delightful, brilliant, outstanding, perfect, terrific, marvelous,
    splendid, fabulous, impressive, beautiful, charming, pleasant, enjoyable, fine, nice, awesome, remarkable, exceptional, incredible, magnificent,
    satisfying, refreshing, stunning, gorgeous, flawless, first-class, thoughtful, special, memorable, adorable, worth it, worth the money, better than expected,
    phenomenal, spectacular, superior, heavenly, divine, exquisite, sublime, wonderful in every way, second to none, world-class, just right, ideal,
    smart, cheerful, happy, cool, glorious, dreamy, a joy, a pleasure, a delight, a treat, a gem, a masterpiece, a triumph, a bargain, a dream, a
    blessing, a relief, a success, a treasure, a highlight, a dream come true, a pleasant surprise, a hit, a winner, the best, the best in town, my favorite,
    a lifesaver, pure joy, pure magic, a breath of fresh air""")
BAD = _list("""bad, poor, terrible, awful, horrible, dreadful, disappointing, disgusting, nasty, annoying, irritating, frustrating, infuriating, miserable,
    dismal, ugly, unbearable, unacceptable, ridiculous, pathetic, mediocre, underwhelming, atrocious, appalling, abysmal, inferior, wrong, hopeless,
    grim, tiresome, weak, dull, messy, silly, stupid, sad, horrific, horrendous, shocking, lousy, unpleasant, vile, worse than expected, second-rate, laughable,
    inexcusable, disgraceful, embarrassing, insulting, misleading, not worth it, overrated, below average, pitiful, depressing, hideous, wretched, ruined, revolting,
    a disaster, a nightmare, a mess, a disappointment, a failure, a scam, a rip-off, a letdown, a joke, a shame, a waste of money, a
    waste of time, a chore, torture, a bore, an insult, rubbish, garbage, junk, a mistake, a fiasco, a fraud, the worst, the worst in town, a headache,
    a total loss, a flop, a catastrophe, an embarrassment, a complete mess, trash, crap, a pain""")

LIKED = _list("""loved, enjoyed, adored, liked, appreciated, admired, was impressed by, was delighted with, was happy with, fell in love with, would
    recommend, really recommend, was pleased with, am grateful for, was thrilled with, cannot praise enough, cannot get enough of, was
    charmed by, will never forget, am so glad I chose, highly recommend, was blown away by, am very satisfied with, was amazed by, savored, treasure,
    am a big fan of, cherish, cannot live without, keep coming back for, was touched by, was excited about, applaud, praised, have nothing but praise for""")
DISLIKED = _list("""hated, disliked, regretted, loathed, was disappointed by, was annoyed by, was let down by, got tired of, struggled with, complained
    about, regret choosing, would avoid, cannot recommend, was shocked by, was fed up with, could not stand, was disgusted by, was bored by, was
    frustrated by, returned, wasted my money on, despise, was appalled by, had nothing but trouble with, am sick of, was upset about, was
    unhappy with, was insulted by, cannot forgive, was embarrassed by, would warn everyone about, wish I had skipped, suffered through, dreaded, resent,
    was horrified by, was angry about""")

WORKED = _list("""worked perfectly, works flawlessly, arrived on time, arrived early, exceeded my expectations, made my day, put a smile on my face, kept
    me hooked, was worth every penny, works like new, lasted for years, saved me hours, fits perfectly, made us laugh, made everyone feel welcome,
    won me over, never let me down, runs like a dream, looks even better in person, surprised us in the best way, made me happy, helped me a lot,
    solved my problem at once, does exactly what it promises, feels like luxury, deserves an award, held up beautifully, went smoothly, is a joy to use,
    brought tears of joy, flew by, delivered on every promise, was a hit with the kids, impressed everyone, hit the spot, kept its promise, shines, deserves
    all the praise, could not have been better, gets better every time, warmed my heart, is still going strong, brightened our week, thrilled us, improved my life""")
FAILED = _list("""broke after a week, stopped working, fell apart, failed twice, crashed constantly, arrived late, arrived broken, ruined the evening, let me
    down, did not work, never arrived, made me sick, gave me a headache, fell short, left me cold, put me to sleep, cost a fortune, kept
    freezing, drove me crazy, died within a month, ruined our day, made us wait for hours, ignored us, wasted my time, cracked on day one, smelled
    awful, left a bad taste, went from bad to worse, made no sense, lied to me, charged us twice, lost my order, overheated, leaked everywhere, came
    apart, made everything worse, failed miserably, fell flat, made me angry, disappointed everyone, could not have been worse, dragged on forever, got
    everything wrong, hung up on me, refused to help, tore at once, spoiled the mood, insulted us, gets worse every time, deleted my work, bored me to tears""")

HAPPY_WORDS = _list("""I would go back tomorrow, highly recommended, five stars, I will definitely be back, worth every penny, I could not be happier, what a
    treat, what a joy, we laughed the whole time, exactly what I needed, I cannot wait to return, money well spent, I smiled all day, no
    complaints at all, nothing to complain about, thank you so much, we had a great time, I would buy it again, it is a must, I am so happy, I would
    do it again, I told all my friends to try it, ten out of ten, two thumbs up, I was smiling from ear to ear, a perfect day, not a single
    complaint, everything was perfect, I felt right at home, well done, keep it up, hats off to them, I am in love, I want more, we felt spoiled, never a dull
    moment, it was over too soon, we will come again, my expectations were exceeded, I have never been happier, it made us so happy, we were all
    delighted, what a pleasure, I give it full marks, it is worth the trip, I could not stop smiling, I was pleasantly surprised, I cannot fault it,
    so glad we came, you will not regret it, even my picky mother was happy, I am already looking forward to the next time, it was everything I hoped for""")
UNHAPPY_WORDS = _list("""never again, I want my money back, avoid it, save your money, what a waste, what a shame, one star, stay away, I asked for a
    refund, I will not be back, I gave up, do not bother, a complete disaster, a total nightmare, nobody apologized, I left hungry, we walked
    out, I would not wish it on anyone, I threw it away, I am still waiting, it was a huge letdown, I sent it back, nobody answered, look elsewhere, I am
    furious, I felt cheated, zero stars, two thumbs down, I regret it, I cancelled, I nearly cried, I expected more, I deserved better, we left early, no
    apology and no refund, what a joke, we felt ripped off, I fell asleep, I could not wait to leave, it was money down the drain, I complained twice, nobody
    cared, I felt ignored, I will never come back, it ruined everything, do yourself a favor and skip it, I want those two hours back, I was
    so angry, we were all disappointed, nothing worked, I am fed up, it ended in tears, I have never been so disappointed, I had to throw it out, we
    waited an hour for nothing, I would give it no stars, the excuses never ended, my expectations were not met, it went straight in the bin, I had a terrible time""")

VERY = _list(
    "really, very, so, absolutely, truly, incredibly, quite, extremely, simply, just, completely, utterly, totally, always, pretty"
)
TROUBLE = _list(
    "problem, complaint, mistake, delay, bug, flaw, issue, hassle, bad word, dull moment, scratch, stain, fault, worry, crash, error, weak spot, regret"
)
VIRTUES = _list(
    "smile, apology, friendly word, good idea, good moment, kind word, laugh, bright spot, good reason to return, thank you, redeeming feature, explanation"
)
BEFORE = _list("I expected it to be {a}, but|I feared it would be {a}, but|my friends said it was {a}, yet|at first it seemed {a}, but|it looked {a}, but"
    .replace(",", "\0").replace("|", ","))  # fmt: skip
WHO = _list(
    "my wife, my husband, my mother, my son, our daughter, the kids, my friend, everyone, my sister, our group, my colleague, the whole family"
)

# A mood's own words first, the other mood's second: a sentence of the other mood is the same sentence with the two exchanged.
Mood = tuple["Lexicon", "Lexicon"]


@dataclass(frozen=True, slots=True)
class Lexicon:
    adjectives: tuple[str, ...]
    felt: tuple[str, ...]
    did: tuple[str, ...]
    outcries: tuple[str, ...]


PLEASED = Lexicon(GOOD, LIKED, WORKED, HAPPY_WORDS)
DISPLEASED = Lexicon(BAD, DISLIKED, FAILED, UNHAPPY_WORDS)


def documents(seed: int) -> Iterator[Document]:
    """Reviews without end."""
    dice = random.Random(seed)
    while True:
        topic = dice.choice(TOPICS)
        pleased = dice.random() < 0.5
        sentences = [_sentence(dice, topic, pleased) for _ in range(dice.randint(3, 6))]
        if dice.random() < 0.5:
            sentences.insert(dice.randint(0, 1), dice.choice(topic.neutral))
        written = [_written(dice, sentence) for sentence in sentences]
        kind = dice.random()
        if kind < 0.10:
            yield Document(" ".join(written[: dice.randint(1, 2)]), TOPIC_TASK, topic.name)
        elif kind < 0.40:
            start = dice.randint(1, len(written) - 1)
            yield Document(" ".join(written[:start]), CONTINUE_TASK, " ".join(written[start:]))
        elif kind < 0.44:
            word = dice.choice((*LABEL_WORDS, dice.choice(topic.things), dice.choice(GOOD), dice.choice(BAD)))
            yield Document(word, REPEAT_TASK, word)
        else:
            yield Document(" ".join(written))


def _sentence(dice: random.Random, topic: Topic, pleased: bool) -> str:
    """One sentence of that mood, without capital and full stop."""
    own, other = (PLEASED, DISPLEASED) if pleased else (DISPLEASED, PLEASED)
    own_topical, other_topical = (topic.good, topic.bad) if pleased else (topic.bad, topic.good)

    def is_(lexicon: Lexicon, topical: tuple[str, ...]) -> str:
        """An adjective, now and then with an adverb."""
        adjective = dice.choice(topical) if dice.random() < 0.55 else dice.choice(lexicon.adjectives)
        plain = not adjective.startswith(("a ", "an ", "the ", "my ", "full ", "worth", "second ", "just "))
        return f"{dice.choice(VERY)} {adjective}" if plain and dice.random() < 0.3 else adjective

    def own_is() -> str:
        return is_(own, own_topical)

    def other_is() -> str:
        return is_(other, other_topical)

    def thing() -> tuple[str, str]:
        """A subject and its verb."""
        article = dice.choice(("the", "the", "the", "this", "our", "my", "their"))
        if dice.random() < 0.25:
            return f"{'these' if article == 'this' else article} {dice.choice(topic.plurals)}", dice.choice(
                ("were", "were", "are")
            )
        return f"{article} {dice.choice(topic.things)}", dice.choice(
            ("was", "was", "was", "is", "felt", "seemed", "turned out to be")
        )

    def object_() -> str:
        return f"{dice.choice(('the', 'the', 'this', 'their'))} {dice.choice(topic.things + topic.plurals)}"

    def is_clause() -> str:
        subject, verb = thing()
        return f"{subject} {verb} {own_is()}"

    def two_adjectives() -> str:
        return f"{is_clause()} {dice.choice(('and', 'and', ', '))} {own_is()}".replace(" , ", ", ")

    def two_clauses() -> str:
        return f"{is_clause()}{dice.choice((' and ', ', and ', ', '))}{is_clause()}"

    def feeling() -> str:
        return f"{dice.choice(('I', 'I', 'I', dice.choice(WHO)))} {dice.choice(own.felt)} {object_()}".replace(
            " am ", " was ", 0
        )

    def doing() -> str:
        return f"{thing()[0]} {dice.choice(own.did)}"

    def outcry() -> str:
        return dice.choice(own.outcries)

    def exclaimed() -> str:
        return f"what a{'n' if (adjective := dice.choice(own.adjectives[:40]))[0] in 'aeiou' else ''} {adjective} {dice.choice(topic.things)}!"

    def noun_phrase() -> str:
        adjective = dice.choice(own_topical if dice.random() < 0.5 else own.adjectives[:40])
        have = dice.choice(("we had", "I got", "it was", "it has", "they have", "I found", "there was", "with", "such"))
        return f"{have} {'an' if adjective[0] in 'aeiou' else 'a'} {adjective} {dice.choice(topic.things)}"

    def negated() -> str:
        """The other mood's word, turned over."""
        subject, verb = thing()
        plural = verb in ("were", "are")
        was = {"were": ("were", "weren't"), "are": ("are", "aren't"), "is": ("is", "isn't")}.get(
            verb, ("was", "wasn't")
        )
        turn = dice.choice(
            (
                f"{was[0]} not",
                was[1],
                f"{was[0]} never",
                f"{was[0]} far from",
                f"{was[0]} anything but",
                f"{was[0]} hardly",
                f"{was[0]} not at all",
            )
        )
        whole = dice.choice(
            (f"{subject} {turn} {other_is()}",) * 4
            + (
                f"nothing about {subject} {'was' if not plural else 'is'} {other_is()}",
                f"I would not call {subject} {other_is()}",
                f"nobody could say that {subject} {was[0]} {other_is()}",
            )
        )
        return whole + dice.choice(("", "", " at all"))

    def without() -> str:
        if pleased:
            return f"{thing()[0]} {dice.choice(('came', 'works', 'went', 'ran'))} {dice.choice(('without a', 'without a single', 'without any'))} {dice.choice(TROUBLE)}"
        return dice.choice(
            (
                f"there was not a single {dice.choice(VIRTUES)}",
                f"we had one {dice.choice(TROUBLE)} after another",
                f"another day, another {dice.choice(TROUBLE)}",
            )
        )

    def without_trouble() -> str:
        subject = thing()[0]
        trouble = dice.choice(TROUBLE)
        if pleased:
            return dice.choice(
                (
                    f"there was no {trouble} with {subject}",
                    f"I have no {trouble} about {subject}",
                    f"not one {trouble} with {subject}",
                )
            )
        return dice.choice(
            (
                f"there was a {trouble} with {subject}",
                f"I have a {trouble} about {subject}",
                f"yet another {trouble} with {subject}",
            )
        )

    def turn() -> str:
        """First the other mood, and then what counts."""
        first_subject, first_verb = thing()
        if dice.random() < 0.3:
            return f"{dice.choice(BEFORE).replace(chr(0), ',').format(a=other_is())} {is_clause()}"
        joined = dice.choice(
            (
                "{first}, but {second}",
                "{first}, but {second}",
                "although {first}, {second}",
                "even though {first}, {second}",
                "{first}; still, {second}",
                "{second}, although {first}",
                "despite everything {second}",
                "while {first}, {second}",
            )
        )
        second = dice.choice((is_clause, doing, outcry))()
        return joined.format(first=f"{first_subject} {first_verb} {other_is()}", second=second)

    def because() -> str:
        return f"{dice.choice((outcry, feeling))()} {dice.choice(('because', 'since', 'as'))} {is_clause()}"

    def led_by_adjective() -> str:
        return f"{dice.choice(own_topical + own.adjectives)} {dice.choice(topic.things)}"

    kinds: tuple[tuple[Callable[[], str], int], ...] = (
        (is_clause, 14),
        (two_adjectives, 8),
        (two_clauses, 6),
        (feeling, 12),
        (doing, 12),
        (outcry, 10),
        (exclaimed, 3),
        (noun_phrase, 8),
        (negated, 14),
        (without, 3),
        (without_trouble, 3),
        (turn, 10),
        (because, 5),
        (led_by_adjective, 4),
    )
    return dice.choices([kind for kind, _ in kinds], [weight for _, weight in kinds])[0]()


def _written(dice: random.Random, sentence: str) -> str:
    ending = "" if sentence.endswith("!") else dice.choice((".", ".", ".", ".", "!"))
    return sentence[0].upper() + sentence[1:] + ending
