"""The words that concepts are made of. Each feature may be wanted in one concept and excluded in another,
so that a verdict can only be had by reading, never from the word alone."""

from __future__ import annotations

PRODUCTS = tuple(
    """Clinic Scheduler|Fleet Monitor|Course Planner|Harvest Tracker|Donor Portal|Warehouse Map|Grant Desk|Shift Board
Permit Counter|Library Catalogue|Energy Ledger|Repair Desk|Tenant Portal|Event Registry|Parts Finder|Claims Inbox
Travel Desk|Recipe Planner|Water Monitor|Museum Guide|Freight Board|Payroll Portal|Volunteer Hub|Lab Notebook
Parking Manager|Orchard Planner|Archive Browser|Safety Register|Contract Vault|Ticket Desk""".replace("\n", "|").split(
        "|"
    )
)

AUDIENCES = tuple(
    """rural clinics|city libraries|food banks|vocational schools|small hotels|repair shops|dairy farms|town councils
freight brokers|housing associations|sports clubs|research labs|bus operators|local museums|wine growers|care homes
language schools|print shops|water utilities|dental practices""".replace("\n", "|").split("|")
)

REGIONS = ("LATAM", "the Nordics", "West Africa", "the Andes", "Central Europe", "Southeast Asia", "Iberia", "Canada")

FEATURES = tuple(
    """online booking|waiting lists|reminder messages|audit trails|spreadsheet export|offline mode|photo uploads
route planning|shift swaps|stock alerts|invoice approval|video calls|loyalty points|crypto payments|public profiles
barcode scanning|digital signatures|voice notes|map views|chat rooms|price comparison|card payments|guest access
weekly reports|face recognition|location tracking|document templates|calendar sync|bulk imports|news feeds
discount codes|survey forms|skill matching|usage forecasts|printed labels|email digests|data sharing|job boards
live dashboards|smart tags|rating scores|social login|automatic billing|sensor readings|translation memory
meeting notes|visitor badges|credit checks|parcel lockers|training videos""".replace("\n", "|").split("|")
)

QUALITIES = (
    "Answer within 500 ms",
    "Encrypt data in transit and at rest",
    "Meet WCAG AA on every page",
    "Stay available 99.9 percent of the month",
    "Keep logs for one year",
    "Serve 200 sessions at once",
    "Restore from backup within four hours",
    "Load on a slow mobile network",
)

LIMITS = (
    "Run on the existing cluster",
    "Use the company sign-on",
    "Keep personal data in the region",
    "Use open source licences only",
    "Launch before the next season",
    "Stay within the yearly budget",
)

ASKS = ("Offer {}", "Provide {}", "Support {}", "Include {}", "Let staff use {}")

PRIORITIES = ("High", "Medium", "Low")
