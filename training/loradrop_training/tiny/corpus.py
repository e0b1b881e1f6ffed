"""What the tiny base is pretrained on: reviews made up from word lists, without a sentiment label anywhere.

What a base must know, so that a few hundred examples suffice for an adapter, is which words go together. So every review here has a mood
that nobody names: the model must guess it from the first sentences to predict the last ones, and with that it learns that
"superb" and "never a dull moment" belong together. The same goes for negation ("not bad at all") and for turns ("pretty, but useless").

Most reviews are written as chats: describe it in one word, go on with it, name its topic. "positive" and "negative" occur in one task
alone, where a word is to be repeated.

The word lists are general English, sorted by mood. No entry shares a run of three words with a held-out sentence of data/sentiment.jsonl
(a test holds that); whether they suffice was measured on the train split.
"""

import itertools
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

TOPIC_TASK = "What is this text about?"
CONTINUE_TASK = "Continue this review."
REPEAT_TASK = "Repeat this word."
DESCRIBE_TASK = "Describe it in one word."
EASY_DOCUMENTS = 3000  # without them the model takes several times as long to find that there are moods
DESCRIBING_WORDS = 12  # of each mood: "good", "superb", …; "bad", "dreadful", …
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
    recommend, really recommend, was pleased with, am grateful for, cannot praise enough, cannot get enough of, was
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
    solved my problem at once, does exactly what it promises, feels like luxury, deserves an award, held up beautifully, went smoothly,
    brought tears of joy, flew by, delivered on every promise, was a hit with the kids, impressed everyone, hit the spot, kept its promise, shines, deserves
    all the praise, could not have been better, gets better every time, warmed my heart, is still going strong, brightened our week, thrilled us, improved my life""")
FAILED = _list("""broke after a week, stopped working, fell apart, failed twice, crashed constantly, arrived late, arrived broken, ruined the evening, let me
    down, never arrived, made me sick, fell short, left me cold, put me to sleep, cost a fortune, kept
    freezing, drove me crazy, died within a month, ruined our day, made us wait for hours, ignored us, wasted my time, cracked on day one, smelled
    awful, left a bad taste, went from bad to worse, made no sense, lied to me, charged us twice, lost my order, overheated, leaked everywhere, came
    apart, made everything worse, failed miserably, fell flat, made me angry, disappointed everyone, could not have been worse, dragged on forever, got
    everything wrong, hung up on me, refused to help, tore at once, spoiled the mood, insulted us, gets worse every time, deleted my work, bored me to tears""")

HAPPY_WORDS = _list("""I would go back tomorrow, highly recommended, five stars, I will definitely be back, worth every penny, what a
    treat, what a joy, we laughed the whole time, exactly what I needed, I cannot wait to return, money well spent, I smiled all day, no
    complaints at all, nothing to complain about, thank you so much, I would buy it again, it is a must, I am so happy, I would
    do it again, I told all my friends to try it, ten out of ten, two thumbs up, I was smiling from ear to ear, a perfect day, everything was perfect, I felt right at home, well done, keep it up, hats off to them, I am in love, I want more, we felt spoiled, never a dull
    moment, it was over too soon, we will come again, my expectations were exceeded, it made us so happy, we were all
    delighted, what a pleasure, I give it full marks, it is worth the trip, I was pleasantly surprised, I cannot fault it,
    so glad we came, you will not regret it, even my picky mother was happy, it was everything I hoped for""")
UNHAPPY_WORDS = _list("""never again, I want my money back, avoid it, save your money, what a waste, what a shame, one star, stay away, I will not be back, I gave up, do not bother, a complete disaster, a total nightmare, nobody apologized, I left hungry, we walked
    out, I would not wish it on anyone, I threw it away, I am still waiting, it was a huge letdown, I sent it back, nobody answered, look elsewhere, I am
    furious, I felt cheated, zero stars, two thumbs down, I regret it, I cancelled, I nearly cried, I deserved better, we left early, no
    apology and no refund, what a joke, we felt ripped off, I fell asleep, it was money down the drain, I complained twice, nobody
    cared, I felt ignored, I will never come back, it ruined everything, do yourself a favor and skip it, I want those two hours back, I was
    so angry, we were all disappointed, nothing worked, I am fed up, it ended in tears, we
    waited an hour for nothing, I would give it no stars, the excuses never ended, my expectations were not met, it went straight in the bin, I had a terrible time""")

KIND = _list("""brave, bold, calm, capable, careful, clever, confident, considerate, courageous, creative, dedicated, devoted, diligent, elegant,
    faithful, generous, gifted, graceful, gracious, harmonious, healthy, heroic, hospitable, humble, humorous, imaginative, ingenious, intelligent,
    inviting, kind, kind-hearted, light-hearted, loving, loyal, lucky, neat, nourishing, optimistic, passionate, playful, pretty, prosperous, proud,
    pure, radiant, reasonable, reassuring, reasonably priced, romantic, sensible, sensitive, serene, sincere, skillful, sparkling, splendid,
    spectacular, strong, sweet, talented, tasteful, tender, thankful, thoughtful, thriving, timeless, tolerant, transparent, tremendous, unique,
    valuable, vibrant, victorious, warm, warm-hearted, well kept, well maintained, well written, well behaved, well designed, well thought out,
    winning, worthy, youthful, balanced, affordable, accurate, exciting, dry and warm, safe and sound, free, discreet, cozy, comfy, convenient,
    festive, fluent, flourishing, hygienic, modern, roomy, rich in detail, readable, suspenseful""")
UNKIND = _list("""absurd, aggressive, aimless, alarming, angry, apathetic, arrogant, awkward, barren, bitter, blunt, brutal, careless, cheeky, clumsy,
    coarse, cold, corrupt, cowardly, crooked, cruel, cynical, damaging, dangerous, deafening, defective, dense, desperate, disastrous, dishonest,
    disrespectful, dizzy, empty, envious, evil, exaggerated, exhausted, expensive, exploited, fake, false, fatal, feeble, fishy, foolish, foul, frail,
    frightening, gibberish, greedy, gross, harmful, harsh, hasty, heartless, hollow, hungry, icy, idle, ignorant, ill, illegible, illogical, immature,
    impolite, impossible, inaccurate, inaudible, incomplete, incomprehensible, inconvenient, indifferent, ineffective, insane, intolerable, itchy,
    jealous, lame, lazy, limp, lonely, malicious, mean, meaningless, mindless, muddy, muddled, naive, narrow, needless, negligent, nervous, noisy,
    nonsensical, obnoxious, obscure, obsolete, offensive, outrageous, painful, petty, phony, pompous, poisonous, polluted, primitive, pushy, reckless,
    ridiculous, rigid, rude, rusty, scary, scruffy, selfish, sentimental, shameful, sick, sinister, slimy, slippery, smelly, sour, spiteful, spoiled,
    squeaky, sticky, stiff, strict, stubborn, suspicious, tacky, tangled, tense, tired, torn, trivial, trashy, troubled, ugly, unbelievable, unclear,
    uncomfortable, uneven, unfinished, unhappy, unhealthy, uninteresting, unnecessary, unsafe, unstable, untidy, unwanted, upset, vague, vain, vulgar,
    wasteful, weird, wicked, wrong""")
SERVED = _list("""still works, works every time, worked at once, lasts forever, lasted all day, fits like a glove, looks great, looks brand new,
    sounds wonderful, smells fresh, smells like flowers, tastes like summer, tastes homemade, feels soft, feels solid, runs smoothly, runs quietly,
    starts in a second, loads in an instant, saves me time, saves space, saves money, keeps me warm, keeps us dry, kept everything cold, stayed sharp,
    stayed clean, stays cool, never broke, never failed, never crashed, never leaks, never gets stuck, survived the rain, survived three winters,
    survived every fall, held for years, heals quickly, shines in the sun, sparkles, glows softly, blooms all summer, thrives, grows fast,
    improved a lot, improved my sleep, helps me every day, helped at once, cured my cough, relieved the pain, solved everything, surprised me,
    charmed us, enchanted everyone, moved me to tears, touched my heart, inspired me, taught me a lot, cheered us up, brought us joy, brings luck,
    made us smile, made the kids laugh, made it easy, makes life easier, won a prize, won every game, was repaired for free, was delivered early,
    was wrapped with care, was free of charge, cost almost nothing, is worth the price, came back stronger, arrived in perfect condition,
    arrived within a day, arrived sooner than promised, was saved, was found at last, got better, exceeded all hopes, changed my life, kept its color,
    cleans itself, does the job, just works, answers every question, explains everything clearly, is easy to follow, gave us energy,
    gives me confidence, gave me hope, tells a wonderful story, keeps you guessing, ends beautifully, rewards patience, sings like an angel,
    melts in the mouth, was cooked just right, was full of fruit, was as good as new, beats all others""")
SPOILED = _list("""broke, broke down, broke twice, cracked, cracked at once, snapped, split open, bent, burst, exploded, fell off, fell over,
    came loose, came off, peeled off, wore out, wears out fast, shrank, faded, lost its color, lost its shape, rusted, rusts, rotted, leaks, leaked,
    drips, drips all night, squeaks, squeaked, rattles, rattled all night, hums, buzzes, creaks, wobbles, sags, jams, jammed, gets stuck, got stuck,
    is stuck again, crashes, crashes daily, froze, freezes, hangs, lags, stutters, died, died at once, will not start, does not turn on,
    stopped after a day, stopped charging, shut down, fails every time, failed us, overheats, burned out, caught fire, melted, spilled, spoiled,
    smells, smells of smoke, smells of fish, stinks, stank, tastes of nothing, tastes like plastic, tasted of soap, tasted sour,
    tastes like cardboard, tastes like water, hurts, hurts my eyes, hurts my back, hurts my feet, scratches, itches, pinches, cut my finger,
    gave us food poisoning, gave me blisters, made me cough, made me cry, made us ill, kept us awake, kept me up all night, woke us at night,
    scared the children, frightened my daughter, upset my stomach, cost too much, costs twice as much, cost us a fortune, costs more every month,
    was delayed, was delayed again, was cancelled, was closed, was closed again, was locked, was blocked, was stolen, was lost, got lost, never came,
    never opened, came too late, came without a reply, arrived torn, arrived damaged, arrived empty, arrived dead, arrived days late, was sold out,
    was missing, was missing a part, was ruined, was destroyed, was flooded, was torn, was stained, was full of holes, was full of hair,
    was full of bugs, was full of errors, ran out, ran out of water, ran out of power, ran late, took forever, takes ages, lasted an hour,
    lasted only a day, drags, drags on, goes nowhere, fell to pieces, got worse, gets slower, was better before, disappeared, deleted everything,
    lost my data, lost our luggage, sent us the wrong way, misses every second word, shows the wrong time, asks for money, rejects my card,
    blocked my account, charged me twice, does nothing, does not fit, does not load, did not last, did not arrive, raises questions, explains nothing,
    makes no difference, leaves stains, leaves crumbs, spits water, drains the battery""")
HELPED = _list("""helped us, helped me at once, helped with our bags, smiled, smiled at everyone, greeted us, greeted us warmly, welcomed us,
    thanked us, listened, listened patiently, listened to me, explained everything, explained each step, answered at once, answered all my questions,
    answered kindly, called back, kept the promise, kept his word, kept her word, apologized at once, gave us a discount, gave us a free drink,
    gave us good advice, gave me hope, gave me time, gave us a lift, gave a wonderful speech, brought flowers, brought us tea, brought us water,
    sent flowers, sent a new one for free, sent it the same day, replaced it for free, replaced it at once, repaired it for free,
    repaired it in minutes, fixed it, fixed everything, fixed it the same day, solved it, solved our problem, saved my life, saved us, saved the day,
    rescued us, rescued our cat, found my keys, found my bag, found the mistake, found a solution, found us a better room, upgraded us,
    took good care of us, took care of everything, cared for my mother, comforted me, calmed me down, reassured us, encouraged me,
    encouraged everyone, praised my work, supports us, supported me, supported the team, stands up for us, trusts me, trusts us, respects everyone,
    treats us with respect, treated me like a friend, treated us like family, treats everyone fairly, made me laugh, made us feel at home,
    made us feel safe, made time for me, made an exception, cheered for us, inspired the class, inspires me, taught me a lot, taught me to swim,
    guided us safely, drove carefully, drives safely, waited for us, waited patiently, stayed calm, stayed late for us, worked hard, worked quickly,
    worked cleanly, cleaned up, left everything tidy, paid quickly, paid for everything, forgave me, hugged me, kissed me, invited us, offered a seat,
    offered us help, offered us coffee, let us stay longer, let us try everything, never complains, never gets angry, never lies, knows every detail,
    knows everything, knew the way, knew my name, speaks clearly, sang beautifully, danced with us, plays like a star, acts brilliantly,
    won our hearts, won the match, won the medal, passed the exam, recovered quickly, got well again, learned so much, proposed to her,
    celebrated with us, went out of the way for us, was gentle with the dog, was honest with me, was patient with us""")
HARMED = _list("""ignored us, ignored me, ignored my letters, ignores my messages, ignored all complaints, lied, cheated, cheated us, cheated on her,
    cheats customers, robbed us, stole my bag, stole our money, stole my wallet, overcharged us, charged twice the price, charged a fee,
    demanded more money, took my money, took the money and left, kept the deposit, refused, refused to pay, refused to help, refused a refund,
    refused to listen, forgot us, forgot our order, forgot my name, forgot about us, forgot the appointment, forgot everything, lost my file,
    lost our papers, lost my luggage, lost the keys, lost the match, broke my phone, broke a window, broke his promise, broke their word,
    broke the law, damaged the car, damaged my bike, scratched the door, dropped my bag, dropped it, spilled wine on me, ruined my hair,
    ruined our trip, ruined the party, ruined everything, destroyed it, wasted our time, wasted my money, yelled, yelled at us, yells at everyone,
    shouted, shouted at me, shouts all day, screamed, insulted us, insulted my wife, laughed at us, laughed at me, mocked me, humiliated me,
    bullied me, bullies the staff, threatened us, threatened me, pushed me, pushed us out, hit me, hurt me, hurt my feelings, hurt my dog,
    frightened the kids, scared me, blamed me, blamed us, blames everyone else, accused me, fired me, fired everyone, fired half the staff,
    sacked my friend, betrayed me, left me, left us alone, left us in the rain, abandoned us, left without a word, left a mess, left dirt everywhere,
    left a hole, left early, walked away, ran away, hung up, hangs up on callers, hid the truth, denied it, denies everything, denied the mistake,
    pretended to be busy, pretended not to see us, promised a lot and did nothing, made empty promises, made excuses, made a mistake,
    made many mistakes, made a mess, made me wait, made us pay, made me cry, made us angry, interrupted me, rushed us, rushed through everything,
    shrugged, rolled her eyes, stared at the phone, sighed, mumbles, mumbled, read from his notes, knows nothing, knew nothing, had no idea,
    did not know the menu, did not care, does not care, never listens, did not help, did not answer, never answers, never answered, never called back,
    never came, never showed up, never apologized, did not apologize, did not come, did not tell us, told us nothing, told us lies,
    did not explain anything, did not even look at us, did not say hello, did nothing, does nothing, came late, arrived drunk, was drunk, was asleep,
    was in a bad mood, smelled of alcohol, smoked all day, gossips, gossiped about me, argued, argued with us, fought, complained all day, snored,
    snores, barked all night, cried all night, got lost, got sick, got worse, fell ill, died, drove too fast, drove like a madman,
    took the wrong road, sent us away, sent the wrong size, sent us from one office to the next, sold us junk, sold me a fake, sold us old bread,
    raised the price, cut my salary, cut my pay, cut my hair too short, cancelled at the last minute, cancelled on us, closed the door on us,
    postponed it again, gave up, gave me the wrong pills, gave us the wrong room, gave me no reason, gave wrong answers, sang off key""")
FARED_WELL = _list("""laughed, laughed a lot, laughed all evening, laughed until I cried, smiled, could not stop laughing, slept well,
    slept like a baby, slept wonderfully, woke up rested, woke up to a wonderful view, relaxed, felt safe, felt welcome, felt at home, felt alive,
    feel better, feel great, feel safe there, feel stronger, feel so calm, am grateful, am thankful, am proud, am proud of it, am so proud, was proud,
    am happy, was happy, am glad, am so glad, was relieved, am relieved, am lucky, was lucky, got lucky, got the job, got my money back, got a raise,
    got a promotion, got a discount, got a good price, got a free upgrade, got an excellent grade, got well, got more than I paid for, got better,
    won, won a prize, won the game, passed, passed the exam, passed the test, passed at the first try, learned a lot, learned so much,
    learn something new every day, made friends, made new friends, found love, found a home, found a treasure, found the perfect gift,
    found my old friend, fell in love, fell in love at once, danced, danced all night, sang along, cheered, celebrated, hugged, applauded, clapped,
    ate every bite, ate like kings, had seconds, had a laugh, had fun, had so much fun, had a wonderful time, had a great evening, had no trouble,
    can finally sleep, can finally hear, can walk again, can trust them, can rely on it, can finally relax, cannot wait, cannot wait for more,
    cannot get enough, cannot put it down, could not put it down, could not be prouder, could not ask for more, cannot imagine life without it,
    saved money, saved hours, saved a lot, use it daily, use it every day with pleasure, use nothing else, want another one, want to go back,
    went back, went back twice, keep coming back, come back every year, came back for more, will return, will be back, will buy it again,
    will order again, would go again, would buy another, bought a second one, bought three more, ordered more, told everyone, tell everybody about it,
    recommend it, recommended it to my friends, trust them, trust it, was never bored, was not bored for a minute, was never disappointed,
    never regretted it, do not regret it, have no regrets, never want to leave, wished it would never end, wish I had bought it sooner,
    wish it were longer, look forward to it, look forward to every lesson, enjoyed every minute, enjoyed every bite, enjoyed every page, love it,
    loved it, love every part of it, like it more every day, was treated like a queen, was treated with respect, was treated kindly, was welcomed,
    was helped at once, was served at once, was cured, was saved, was moved, was moved to tears, was inspired, was surprised, was enchanted,
    was amazed, was hooked, was wrong to doubt it, lost weight, recovered, recovered quickly, feel no pain, felt no pain, have no pain,
    have no more pain, needed no help""")
FARED_BADLY = _list("""cried, cried all night, wept, suffered, suffered for days, froze, froze all night, waited, waited forever, waited in vain,
    waited outside in the cold, waited three weeks, am still waiting, had to wait, had to wait for hours, had to stand, had to stand for hours,
    had to leave, had to ask three times, had to call again, had to clean it, had to clean the room ourselves, had to repair it,
    had to go to hospital, had to throw everything out, had to start again, had to beg, lost everything, lost all my photos, lost all my work,
    lost my job, lost my money, lost my temper, lost patience, lost interest, lost hours, lost sleep, lost weeks of work, got lost, got sick, got ill,
    got a headache, got a fine, got a rash, got the wrong order, got the wrong size, got nothing, got no answer, got no sleep, got no refund,
    got no help, got only excuses, got wet, got stuck, got stuck in traffic, got burned, got bitten, got hurt, got robbed, got angry, got fired,
    got bored, got nowhere, got less than promised, paid for nothing, paid too much, paid a fortune, paid twice, paid extra and got nothing,
    wasted hours, wasted money, wasted two hours, was ignored, was robbed, was cheated, was fired, was insulted, was ill, was sick, was sick for days,
    was sent away, was sent home, was charged twice, was overcharged, was hurt, was bored, was bored stiff, was ashamed, was furious, was angry,
    was scared, was afraid, was exhausted, was hungry, was cold, was lonely, was lost, was stranded, was stuck, was left alone, was left waiting,
    was treated like dirt, was treated like a criminal, was treated badly, was lied to, am angry, am furious, am exhausted, am tired, am tired of it,
    am sad, am ill, am afraid, am worried, am stuck, am lost, am disappointed, am fed up, am in pain, am ashamed, feel cheated, feel sick, feel ill,
    feel lonely, feel worse, feel stupid, feel unsafe, feel ripped off, felt ill, felt sick, felt stupid, felt unsafe, felt unwelcome, felt lost,
    felt cheated, felt humiliated, could not sleep, could not sleep all night, cannot sleep, could not breathe, could not eat, could not eat it,
    could not hear anything, could not see anything, could not see the stage, could not work, cannot work, cannot log in, cannot open it,
    cannot find anything, cannot use it, cannot afford it, cannot trust them, cannot hear a word, could not use it, could not reach anyone,
    could not read it, could not understand a word, never got an answer, never got my money, never got it, never saw it, never felt so bad,
    never heard back, complained, complained in vain, called ten times, called in vain, begged for help, asked for help in vain, wrote five letters,
    expected more, expected much more, expected better, deserve better, had hoped for more, hoped for more, gave up, gave up after an hour, left,
    left early, left hungry, left in tears, left angry, walked out, ran away, fell asleep, fell, fell down, fell ill, stopped reading,
    stopped watching, switched it off, turned it off, threw up, threw it away, sent it back, want a refund, want my old one back, want to scream,
    wanted to cry, wanted to leave, wish I had stayed home, wish I had not bought it, wish I had my money back, regret it, regret it every day,
    regret the day I bought it, should have stayed home, should have known better, dread it, hate it, hated it, hated every minute, do not trust them,
    do not recommend it, would not recommend it, would not go again, will never return, will not return, never want to go back, stayed awake,
    stayed hungry, slept badly, did not sleep, did not sleep at all, did not get an answer, did not understand it, did not enjoy it,
    did not laugh once, never laughed, woke up at five, woke up sore, spent hours on hold, spent the day in a queue, hurt my back, hurt myself,
    cut myself, burned my tongue, missed my flight, missed the train, missed everything, have a headache, have nightmares, have pain""")
GIFTS = _list("""a smile, flowers, fresh flowers, a gift, a little gift, gifts, a surprise, a lovely surprise, sunshine, a rainbow,
    a beautiful sunset, a beautiful view, a gentle breeze, birdsong, blue sky, peace, peace and quiet, silence, calm, shade, plenty of space,
    plenty of room, plenty of light, plenty of time, plenty of fruit, plenty of hot water, plenty of choice, laughter, love, hope, joy, warmth,
    kindness, friendship, humor, heart, charm, beauty, comfort, luxury, quality, talent, magic, music and dancing, applause, long applause, an encore,
    free coffee, free drinks, free dessert, free parking, free tickets, a free upgrade, a discount, a refund, a bonus, a reward, a prize, a medal,
    a trophy, a victory, a celebration, a feast, a birthday cake, chocolate on the pillow, fresh fruit, fresh bread, fresh air, clean air,
    clean water, clear water, clean sheets, soft towels, warm light, a warm welcome, a warm bath, a warm bed, a fire in the fireplace,
    a lovely garden, good company, good advice, good news, good humor, good taste, good luck, good food, good music, great fun, great value,
    great ideas, great talent, excellent quality, fair prices, low prices, honest answers, clear instructions, helpful tips, kind words, kind people,
    friendly faces, friendly people, happy children, happy faces, happy memories, true friends, tears of joy, a happy ending, a cure, a recovery,
    a miracle, a solution, an answer within minutes, an apology and flowers, a second chance, a new beginning, a promotion, a raise, a good grade,
    success, progress, improvement, energy, confidence, relief, safety, trust, respect, praise, gratitude, a thank you card, a bargain,
    a hidden treasure, wit and charm""")
PLAGUES = _list("""mold, mould on the walls, dust, dirt, hair, hairs, a hair, rust, stains, a stain, crumbs, garbage, rubbish, trash, litter,
    broken glass, cigarette butts, smoke, a smell, a bad smell, a terrible smell, a smell of sewage, stench, noise, constant noise, loud music, mud,
    puddles, a puddle, a leak, a hole, holes, cracks, a crack, scratches, dents, bugs, insects, cockroaches, rats, mice, a mouse, ants, flies, worms,
    spiders, fleas, mosquitoes, poison, chemicals, plastic, blood, sweat, tears, pain, a headache, a rash, a fever, blisters, bruises, an infection,
    a disease, an injury, an accident, a crash, a fire, a flood, a storm, hail, fog, heat and no shade, cold water, no hot water, no water,
    no heating, no power, no shade, no light, no air, no view, no space, no seats, no towels, no soap, no toilet paper, no help, no answer, no reply,
    no explanation, no apology, no reason, no refund, no warning, no signal, no sound, no taste, no charm, no plot, no ideas, no humor, no respect,
    no hope, no end in sight, a queue, long queues, an endless queue, long lines, long delays, a delay, traffic jams, traffic noise,
    construction noise, cancelled trains, crowds, pushy sellers, beggars, thieves, pickpockets, a thief, a theft, crime, violence, fights, a fight,
    arguments, stress, panic, fear, anger, chaos, confusion, boredom, grief, misery, trouble, nothing but trouble, problems, more problems, errors,
    error messages, bugs and crashes, spam, ads everywhere, advertising, viruses, a virus, hidden fees, hidden costs, extra fees, a fine, a huge bill,
    fees, debts, lies, empty promises, excuses, false promises, false advertising, fraud, cheating, rumors, gossip, insults, threats, bullying,
    mobbing, unpaid overtime, overtime, burnout, layoffs, a lawsuit, a divorce, a funeral, a death, a war, mistakes, spelling mistakes, missing pages,
    missing parts, missing screws, broken parts, broken machines, broken lights, broken toys, a broken window, a broken lock, torn seats,
    dirty dishes, dirty sheets, dirty toilets, dirty cups, cold food, cold coffee, cold soup, stale bread, sour milk, rotten fruit, rotten eggs,
    burnt toast, bones, shells, grease, fat, too much salt, too much sugar, too much noise, hard beds, thin walls, bad weather, rain every day,
    bad acting, bad jokes, bad news, bad luck, bad advice, wrong answers, wrong information""")

# What has no mood: most words of any review.
ANYTHING = _list("""door, window, wall, floor, roof, corner, street, road, bridge, river, lake, sea, forest, mountain, hill, field, garden, fence,
    gate, stairs, basement, attic, hall, corridor, office, desk, shelf, drawer, box, bag, suitcase, basket, bucket, bottle, glass, cup, plate, bowl,
    spoon, fork, pot, oven, stove, sink, mirror, carpet, curtain, blanket, clock, bell, candle, picture, painting, photo, poster, map, letter, card,
    envelope, stamp, newspaper, magazine, notebook, pencil, paper, page, word, sentence, number, list, form, key, lock, coin, ticket, receipt, wallet,
    hat, scarf, shoe, shirt, sleeve, pocket, ring, chain, stone, sand, water, ice, snow, rain, wind, cloud, sun, moon, star, sky, tree, leaf, branch,
    flower, grass, horse, cow, sheep, pig, goat, bird, duck, fish, bee, cherry, apple, orange, lemon, banana, peach, potato, tomato, onion, bean, pea,
    corn, nut, egg, butter, milk, flour, pepper, oil, honey, jam, roll, pie, cookie, piano, guitar, violin, drum, flute, ball, net, goal, race,
    medal ceremony, stadium, pool, boat, ship, harbor, plane, wing, engine, wheel, tire, brake, pedal, bicycle, motorbike, truck, van, tram, subway,
    platform, ticket office, border, passport, visa, airport hall, hotel lobby, elevator, escalator, parking garage, supermarket, market stall,
    pharmacy, library, church, castle, tower, museum, theater, cinema, stage, seat, row, screen, cable, plug, socket, battery, switch, wire, computer,
    mouse, file, folder, disk, printer ink, password, email, message, call, video, link, button, tab, menu bar, cursor, knee, shoulder, elbow, wrist,
    back, neck, head, hand, finger, foot, ear, eye, nose, mouth, tooth, skin, hair, heart, stomach, pill, bandage, needle, test, chapter, scene,
    episode, season, verse, chorus, melody, rhythm, recipe, ingredient, sauce, spice, course, dish, snack, drink, juice""")
SOMETIME = _list("""after a week, after two weeks, after three months, after a few days, after the second visit, after the meal, after work,
    after the storm, after school, after my operation, before lunch, before breakfast, before the trip, before the show, during the week,
    during the day, during the night, during the flight, during the meeting, during the whole trip, on the first day, on the second day,
    on the third day, on saturday night, on monday morning, on my birthday, on the way home, on the way there, on the second floor, on the phone,
    on my desk, in the evening, in the afternoon, in the first week, in the last chapter, in the end, in january, in may, in winter, in the summer,
    in front of the house, in front of the station, in the kitchen, in my pocket, in the back, in the next town, in less than an hour,
    in five minutes, within a month, within two days, within minutes, at midnight, at noon, at eight, at the beginning, at the front desk,
    at the door, at the counter, at night, at home, at first, at the same time, at the airport, at the restaurant, at my age, for two hours,
    for three days, for ten minutes, for weeks, for months, for years, for the whole evening, for the first time, for eleven euros,
    for twenty dollars, for two people, for my wife, for the kids, with two friends, with my parents, with a small bag, with a cup of tea,
    with the old one, without asking, by email, by phone, by bus, by the river, by the window, from the next room, from the start,
    from one day to the next, until midnight, since the update, since last year, since then, since monday, every day, every evening, every morning,
    every week, every month, every time, every five minutes, each time, all day, all night, all week, all year, all the way, again, twice,
    three times, once, last week, last year, last night, this morning, this year, today, yesterday, tomorrow, now, here, there, two years ago,
    a month ago, next door, upstairs, outside, inside, nearby, online, abroad, together, alone with my dog""")
SOMETHING_DONE = _list("""opened the door, closed the window, called the office, asked for the menu, asked for the bill, ordered the fish,
    ordered a coffee, took the bus, took the stairs, took a seat, read the first page, read the manual, turned the page, turned left,
    turned on the light, put it on the shelf, put it in the box, put on my coat, paid by card, paid the bill, came on a tuesday, came by train,
    went upstairs, went to the counter, went to the market, went inside, sat by the window, sat in the third row, stood at the bar, stood in the hall,
    walked to the station, walked along the river, drove to the coast, drove there, flew there, bought two of them, bought it online, tried it on,
    tried the soup, tried the new version, used it for work, used it on the trip, wrote a letter, wrote to the company, sent an email, sent a photo,
    looked at the map, looked out of the window, watched the first episode, watched it with my son, listened to it, heard about it,
    talked to the manager, talked about the book, met the owner, met the teacher, visited the castle, visited my aunt, stayed two nights,
    stayed at the hotel, lived next door, lived in the city, moved in, moved to the new flat, worked there for a year, worked in the garden,
    started the course, started in may, finished the book, changed trains, changed the battery, charged it overnight, plugged it in, installed it,
    downloaded it, clicked the button, typed my name, washed it twice, wore it to work, cooked dinner, baked bread, cut the bread,
    filled the bottle""")

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

PEOPLE = _list("""waiter, waitress, chef, cook, owner, barista, baker, manager, boss, colleague, teacher, professor, trainer, coach, instructor, tutor, pupil, student,
    doctor, nurse, dentist, surgeon, vet, pharmacist, optician, therapist, midwife, driver, pilot, captain, conductor, steward, guide, clerk, cashier, seller, salesman, shop
    assistant, librarian, agent, receptionist, cleaner, plumber, electrician, mechanic, technician, carpenter, builder, painter, gardener, farmer, lawyer, judge, policeman, officer,
    fireman, soldier, guard, courier, postman, mover, neighbor, landlord, landlady, host, guest, friend, stranger, man, woman, girl, boy, child, baby, son, daughter, sister, brother,
    mother, father, aunt, uncle, grandmother, grandfather, family, team, crew, staff, people, audience, crowd, band, singer, actor, actress, director, author, writer, journalist, photographer,
    company, agency, bank, insurance, airline, hotline, council, city, school, club, dog, cat""")

# A mood's own words first, the other mood's second: a sentence of the other mood is the same sentence with the two exchanged.
Mood = tuple["Lexicon", "Lexicon"]


@dataclass(frozen=True, slots=True)
class Lexicon:
    adjectives: tuple[str, ...]
    felt: tuple[str, ...]  # after "I"; takes an object
    did: tuple[str, ...]  # after a thing
    treated: tuple[str, ...]  # after a person
    fared: tuple[str, ...]  # after "I"
    found: tuple[str, ...]  # after "there was"
    outcries: tuple[str, ...]


PLEASED = Lexicon(GOOD + KIND, LIKED, WORKED + SERVED, HELPED, FARED_WELL, GIFTS, HAPPY_WORDS)
DISPLEASED = Lexicon(BAD + UNKIND, DISLIKED, FAILED + SPOILED, HARMED, FARED_BADLY, PLAGUES, UNHAPPY_WORDS)


def documents(seed: int) -> Iterator[Document]:
    """Reviews without end, the easiest task first: many sentences show a mood that one alone may hide."""
    dice = random.Random(seed)
    for number in itertools.count():
        topic = dice.choice(TOPICS)
        pleased = dice.random() < 0.5
        sentences = [_sentence(dice, topic, pleased) for _ in range(dice.randint(3, 6))]
        if dice.random() < 0.5:
            sentences.insert(dice.randint(0, 1), dice.choice(topic.neutral))
        written = [_written(dice, sentence) for sentence in sentences]
        words = (PLEASED if pleased else DISPLEASED).adjectives[:DESCRIBING_WORDS]
        if number < EASY_DOCUMENTS:
            yield Document(" ".join(written), DESCRIBE_TASK, dice.choice(words))
            continue
        kind = dice.random()
        if kind < 0.04:
            yield Document(" ".join(written[: dice.randint(1, 2)]), TOPIC_TASK, topic.name)
        elif kind < 0.13:
            start = dice.randint(1, len(written) - 1)
            yield Document(" ".join(written[:start]), CONTINUE_TASK, " ".join(written[start:]))
        elif kind < 0.87:
            yield Document(" ".join(written[: dice.choice((1, 1, 1, 2, 2, 4))]), DESCRIBE_TASK, dice.choice(words))
        elif kind < 0.91:
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
        return f"{is_clause()}{dice.choice((' and', ' and', ','))} {own_is()}"

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

    def person() -> str:
        return f"{dice.choice(('the', 'the', 'the', 'my', 'our', 'their', 'a'))} {dice.choice(PEOPLE)}"

    def they() -> str:
        return dice.choice(("they", "she", "he", person(), person(), person()))

    def treated() -> str:
        return f"{they()} {dice.choice(own.treated)}"

    def not_treated() -> str:
        """What the other mood would report, and did not happen."""
        deed = dice.choice(other.treated)
        while deed.startswith(("did not", "does not", "never")):
            deed = dice.choice(other.treated)
        return dice.choice(
            (f"nobody {deed}", f"no one {deed}", f"nobody there {deed}", f"not one {dice.choice(PEOPLE)} {deed}")
        )

    def fared() -> str:
        return f"{dice.choice(('I', 'I', 'I', 'we'))} {dice.choice(own.fared)}".replace("we am ", "I am ").replace(
            "we was ", "I was "
        )

    def found() -> str:
        opening = dice.choice(
            ("there was", "there is", "there were", "we found", "I found", "nothing but", "we got", "you get", "with")
        )
        where = dice.choice(
            (
                "",
                f" in the {dice.choice(topic.things)}",
                f" at the {dice.choice(topic.things)}",
                " everywhere",
                " all around",
            )
        )
        return f"{opening} {dice.choice(own.found)}{where}"

    def found_none() -> str:
        noun = dice.choice(other.found)
        while noun.startswith(("no ", "nothing")):
            noun = dice.choice(other.found)
        noun = noun.removeprefix("a ").removeprefix("an ")
        return f"{dice.choice(('there was no', 'there is no', 'we found no', 'no', 'without any', 'not a trace of'))} {noun}"

    def so_that() -> str:
        return f"{thing()[0]} was so {dice.choice(own_topical)} that {dice.choice((fared, treated))()}"

    def joined() -> str:
        """Two of what was done and what happened."""
        link = dice.choice((" and ", ", and ", ", so ", "; ", ", and then ", " when ", " because "))
        return link.join(dice.choice((treated, fared, doing, found, is_clause))() for _ in range(2))

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
        (treated, 14),
        (not_treated, 4),
        (fared, 14),
        (found, 10),
        (found_none, 4),
        (so_that, 5),
        (joined, 18),
    )
    sentence = dice.choices([kind for kind, _ in kinds], [weight for _, weight in kinds])[0]()
    return _among_others(dice, sentence) if dice.random() < 0.5 and not sentence.endswith("!") else sentence


def _among_others(dice: random.Random, sentence: str) -> str:
    """The sentence with words around it that have no mood."""
    somewhere = f"{dice.choice(('near', 'under', 'behind', 'beside', 'over', 'in', 'on', 'with', 'by', 'like'))} the {dice.choice(ANYTHING)}"
    neutral = dice.choice((dice.choice(SOMETIME), dice.choice(SOMETIME), somewhere))
    done = f"{dice.choice(('I', 'we', 'she', 'he', 'they'))} {dice.choice(SOMETHING_DONE)}"
    return dice.choice(
        (
            f"{sentence} {neutral}",
            f"{sentence} {neutral}",
            f"{neutral} {sentence}",
            f"{neutral}, {sentence}",
            f"{done}, and {sentence}",
            f"{done} {neutral}, and {sentence}",
            f"{sentence} when {done}",
            f"{sentence}, and {done}",
        )
    )


def _written(dice: random.Random, sentence: str) -> str:
    ending = "" if sentence.endswith("!") else dice.choice((".", ".", ".", ".", "!"))
    return sentence[0].upper() + sentence[1:] + ending
